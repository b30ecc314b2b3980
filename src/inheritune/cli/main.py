"""The `inheritune` command: one sub-command per question a user has; each imports its heavy parts when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, cast

import typer

from inheritune import __version__
from inheritune.cli.analyze import analyze
from inheritune.cli.evaluate import evaluate
from inheritune.cli.experiments import quickstart, reproduce
from inheritune.cli.inherit import inherit
from inheritune.cli.prepare import prepare
from inheritune.cli.report import report
from inheritune.cli.run import frontier, plan, run
from inheritune.errors import InherituneError

STOPPED = 130
"""The exit status of a command that Ctrl-C stopped: 128 + SIGINT."""

UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])
"""Click's own class; by this road because newer releases of Typer bring a click of their own."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inheritune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find where a decoder language model's attention has collapsed, and build a smaller, equally good model."""


for function in (quickstart, analyze, inherit, prepare, plan, run, frontier, evaluate, reproduce, report):
    app.command()(function)


def main() -> None:
    """Run the command line; a user's mistake becomes one line and exit status 2, an interruption status 130."""
    # Our own progress line says what is going on; the libraries' bars and hints would tear it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        status = app(standalone_mode=False) or 0
    except (UsageError, InherituneError) as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `inheritune` alone: its message is the help
            app(["--help"])
        message = error.format_message() if isinstance(error, UsageError) else error
        print(f"error: {message}", file=sys.stderr)  # noqa: T201 - the one line a user's mistake gets
        status = 2
    except (typer.Abort, KeyboardInterrupt):
        status = STOPPED
    if status == STOPPED:
        hint = "it goes on from what is saved, or starts over where nothing is"
        print(f"stopped; run the same command again: {hint}", file=sys.stderr)  # noqa: T201
    sys.exit(status)
