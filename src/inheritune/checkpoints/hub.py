"""Models on the Hugging Face hub: read through huggingface_hub's cache, file by file as they are needed, and uploaded.

The cache folder, the token, the endpoint and the offline mode are huggingface_hub's own settings (`HF_HOME`,
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`).
"""

import functools
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from inheritune.errors import InherituneError, ModelError, OutputError, reason

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_CACHED = re.compile(r"(?:^|[/\\])models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})$")


@dataclass(frozen=True)
class Repository:
    """A model on the hub at one commit.

    Attributes:
        name: its id, for example `openai-community/gpt2`.
        commit: the commit that was asked for, or that the branch or tag stood at.
        folder: the files that are here so far, in huggingface_hub's cache.
    """

    name: str
    commit: str
    folder: Path

    def fetch(self, names: Iterable[str], patterns: Iterable[str] = ()) -> None:
        """Bring files here: `names`, which must exist, and whatever else fits `patterns`.

        Raises:
            ModelError: a file of `names` cannot be had.
        """
        names = list(names)
        if hub_can_answer():
            with _in_one_line(_reason, ModelError, self.name, self.commit):
                huggingface_hub.snapshot_download(self.name, revision=self.commit, allow_patterns=[*names, *patterns])
        for name in names:
            if not (self.folder / name).is_file():
                raise ModelError(f"the file {name} of {self.name} is not on the hub or cannot be had: {_unreachable()}")

    def fetch_if_there(self, name: str) -> Path | None:
        """Bring the file `name` here; None if the repository has no such file, or none that can be had offline.

        Raises:
            ModelError: the hub refuses or does not answer.
        """
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        online, get = hub_can_answer(), huggingface_hub.hf_hub_download
        with _in_one_line(_reason, ModelError, self.name, self.commit):
            try:
                return Path(get(self.name, name, revision=self.commit, local_files_only=not online))
            except EntryNotFoundError as error:
                if online and isinstance(error, LocalEntryNotFoundError):
                    raise
                return None


def open_repository(name: str, revision: str | None = None, patterns: Iterable[str] = ()) -> Repository:
    """Find a model or a tokenizer on the hub, or in the cache where the hub cannot be asked.

    Args:
        name: its id.
        revision: a branch, tag or commit; None for the main branch.
        patterns: which files to download; none for config.json alone, which must be there then.

    Raises:
        ModelError: there is no such model or revision, it is gated, or it is neither cached nor reachable.
    """
    where = {"revision": revision, "local_files_only": not hub_can_answer()}
    with _in_one_line(_reason, ModelError, name, revision):
        if patterns := [*patterns]:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **where))
        else:
            folder = Path(huggingface_hub.hf_hub_download(name, "config.json", **where)).parent
    return Repository(name, folder.name, folder)


def cached_repository(name: str) -> Repository | None:
    """Return a model's main branch as the cache has it, without asking the hub; None where it is not there."""
    path = huggingface_hub.try_to_load_from_cache(name, "config.json")
    return Repository(name, Path(path).parent.name, Path(path).parent) if isinstance(path, str) else None


def cached_name(folder: Path) -> tuple[str, str] | None:
    """Return the id and the commit of the hub's model that a folder of the cache holds; None for any other folder."""
    match = _CACHED.search(str(folder))
    return (match[1].replace("--", "/", 1), match[2]) if match else None


def hub_can_answer() -> bool:
    """Return whether it makes sense to ask the hub: it is not forbidden, and its name resolves (or a proxy does it).

    Without a network the hub's client asks again for half a minute before it gives up; its cache is all there is then.
    """
    return not constants.HF_HUB_OFFLINE and _resolves(constants.ENDPOINT)


@functools.cache
def _resolves(endpoint: str) -> bool:
    parts = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies().get(parts.scheme or "https"):
        return True
    try:
        socket.getaddrinfo(parts.hostname, parts.port or 443)
    except OSError:
        return False
    return True


def _unreachable() -> str:
    """Say why the hub was not asked, or did not answer."""
    return "HF_HUB_OFFLINE forbids to ask the hub" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"


@contextmanager
def _in_one_line(line: Callable[..., str], kind: type[InherituneError], *about: str | None) -> Iterator[None]:
    """Turn what goes wrong between us and the hub into an error of type `kind` that says `line(error, *about)`."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:  # ValueError: huggingface_hub's refusal of an id
        raise kind(line(error, *about)) from error


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Say in one line why a model could not be had from the hub."""
    from huggingface_hub import errors

    page = f"{constants.ENDPOINT}/{name}"
    if isinstance(error, OSError) and error.errno is not None:  # no permission, no space: not the hub's fault
        return f"cannot keep {name} in the hub's cache: {reason(error)}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: ask for access at {page}, then log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no folder and no model on the hub is called {name}; if it is private, log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on the hub: expected a branch, a tag or a commit; see {page}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        wanted = f" at revision {revision!r}" if revision else ""
        return (
            f"cannot load a model from {name}{wanted}: there is no such folder, it is not in the hub's cache, "
            f"and {_unreachable()}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name} is no model for transformers: it has no config.json on the hub; see {page}"
    return f"cannot get {name} from the hub: {reason(error)}"


# -- upload -----------------------------------------------------------------------------------------------------------


def check_push(repo_id: str, token: str | None = None) -> None:
    """Refuse, by an OutputError, an upload to `repo_id` that cannot succeed: by its name, the network, a login."""
    if not HUB_ID.match(repo_id):
        raise OutputError(f"{repo_id!r} names no repository on the hub: expected USER/NAME")
    with _in_one_line(_push_reason, OutputError, repo_id):
        huggingface_hub.HfApi(token=token).whoami()


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    leave_out: Iterable[str] = (),
) -> str:
    """Upload a model's folder to a repository, made if it does not exist, which its card names from now on.

    Args:
        folder: the model, as `save_model` or `inherit_checkpoint` write it.
        repo_id: `USER/NAME`, or `NAME` for the user that is logged in.
        private: make a new repository private; one that exists and is public is refused.
        revision: the branch to upload to, made if it does not exist; None for the main branch.
        token: a token with write access; None for the one of `hf auth login` or HF_TOKEN.
        leave_out: files that stay here, as patterns (`"inherit.json"`).

    Returns:
        The repository's address.

    Raises:
        OutputError: it is not a model's folder, nobody is logged in, the hub refuses, or there is no network.
    """
    if not (folder / "config.json").is_file():
        raise OutputError(f"{folder} holds no model to upload: expected a config.json there")
    check_push(repo_id, token)
    api = huggingface_hub.HfApi(token=token)
    with _in_one_line(_push_reason, OutputError, repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(url.repo_id).private:
            raise OutputError(f"{url.repo_id} exists on the hub and is public: pass another name, or allow it")
        if revision is not None:
            api.create_branch(url.repo_id, branch=revision, exist_ok=True)
        if (card := folder / "README.md").is_file():
            loads = f"from_pretrained({url.repo_id!r})".encode()
            card.write_bytes(re.sub(rb"\bfrom_pretrained\('[^'\n]*'\)", loads, card.read_bytes()))
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message="Upload model",
            ignore_patterns=list(leave_out),
        )
    return str(url)


def _push_reason(error: Exception, repo_id: str) -> str:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    why = reason(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = f"{_unreachable()}; unset it"
    elif isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        why = "not logged in; run hf auth login or set HF_TOKEN to a token that may write"
    elif status in (403, 404):
        why = "you may not write there with this token; expected YOUR-NAME/NAME"
    elif isinstance(error, errors.HTTPError) and status is None:
        why = f"the hub cannot be reached ({why})"
    return f"cannot upload to {repo_id}: {why}"
