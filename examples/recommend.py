"""Recommend after items given on the command line, or say nothing where the model is not sure enough.

After `make demo`: python examples/recommend.py runs/demo/rl "Star Wars (1977)" "Alien (1979)" --min-confidence 0.01
"""

from __future__ import annotations

import argparse
import sys

from ugr_fast.recommend import Recommender

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", help="run directory of `ugr-fast rl`")
parser.add_argument("history", nargs="+", help="items chosen so far, oldest first: titles or ids")
parser.add_argument("-k", type=int, default=5, help="recommendations at most (default: 5)")
parser.add_argument("--min-confidence", type=float, default=0.0, help="say nothing where less sure (default: 0)")
options = parser.parse_args()

try:
    found = Recommender.load(options.run)([options.history], k=options.k, min_confidence=options.min_confidence)
except (ValueError, OSError) as error:
    sys.exit(f"recommend: {error}")
if found.abstained[0]:
    sys.exit(f"no recommendation: {found.reasons[0]}")
for item in found[0]:
    print(f"{item.calibrated:.3f}  {item.title}")
