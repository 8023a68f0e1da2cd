"""Watch a run in the terminal, while it is under way or afterwards. Ctrl-C ends the watching, never the run.

python recipes/watch.py runs/quickstart
python recipes/watch.py runs/quickstart --once               # one picture, for a log or a script
ssh -t node7 python recipes/watch.py /shared/runs/my_run     # it only reads files
"""

import argparse
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--once", action="store_true", help="print one picture and end; so without a terminal")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between pictures (1)")
    options = parser.parse_args(arguments)
    if options.interval <= 0:
        parser.error(f"--interval {options.interval:g} must be positive")
    try:
        _watch(options.run_dir, once=options.once, interval_s=options.interval)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # The folder was moved or removed meanwhile, or its file system is gone.
        print(f"error: {error.filename or options.run_dir} can no longer be read: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def _watch(run_dir: Path, *, once: bool, interval_s: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from zs_nemo.observability.run_follower import Life, RunFollower
    from zs_nemo.observability.watch_panel import watch_panel

    follower, console = RunFollower(run_dir), Console()
    if once or not console.is_terminal:
        console.print(watch_panel(follower.view()))
        return
    view = follower.view()
    try:
        with Live(watch_panel(view), console=console, auto_refresh=False) as live:
            # Rich hides the cursor; a killed process could not bring it back.
            console.show_cursor(True)
            # A run that was broken off may be resumed while somebody watches: only a finished one is over.
            while view.life is not Life.finished:
                time.sleep(interval_s)
                view = follower.view()
                live.update(watch_panel(view), refresh=True)
    finally:
        # Also for a Ctrl-C between the two.
        console.show_cursor(True)


if __name__ == "__main__":
    sys.exit(main())
