"""All comparisons, one after the other, each into its section of RESULTS.md.

    make bench ARGS="--weights resnet18.safetensors FOLDER …"

The first folder is what the ceiling and the peers are measured on; zero tuning takes all of them.
Hours on a CPU; what was measured of peers is kept, so that it goes on where it was interrupted.
"""

import argparse
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Run the scripts; return 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="as `train` takes it")
    parser.add_argument("--weights", required=True, help="of a resnet18, safetensors")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    arguments = parser.parse_args()
    first, weights = arguments.folders[0], ["--weights", arguments.weights, "--write"]
    compared = [*weights, "--seeds", *arguments.seeds]
    scripts = {
        "ceiling.py": [first, *weights],
        "peers.py": [first, *compared],
        "zero_tuning.py": [*arguments.folders, *compared],
    }
    here = Path(__file__).parent
    failed = [
        name
        for name, words in scripts.items()
        if subprocess.run([sys.executable, here / name, *words], check=False).returncode
    ]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
