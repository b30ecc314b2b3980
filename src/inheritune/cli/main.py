"""The `inheritune` command: one sub-command per question a user has; each imports its heavy parts when it runs."""

from __future__ import annotations

import os
import sys

import typer

from inheritune.cli import analyze, evaluate, inherit, plan, prepare, quickstart, report, reproduce, run
from inheritune.errors import InherituneError

app = typer.Typer(
    help="Find where a decoder language model's attention has collapsed, and build a smaller, equally good model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (quickstart, analyze, inherit, prepare, plan, run, evaluate, reproduce, report):
    command.register(app)


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit status 2, an interruption status 130."""
    # Our own progress line says what is going on; the libraries' bars and hints would tear it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except InherituneError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line a user's mistake gets
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)  # noqa: T201
        sys.exit(130)


if __name__ == "__main__":
    main()
