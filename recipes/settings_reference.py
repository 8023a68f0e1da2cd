"""Write the reference of all settings, docs/reference/settings.md, from the dataclasses that define them.

python recipes/settings_reference.py
python recipes/settings_reference.py --check      # only say whether it is up to date
"""

import argparse
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is out of date")
    options = parser.parse_args(arguments)

    from zs_nemo.config.reference import settings_reference

    text = settings_reference()
    if options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            print(f"error: {PAGE.name} is out of date; run python recipes/settings_reference.py", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
