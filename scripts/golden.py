"""Record the first losses of a few configs, to show when a change moves numbers that it should not.

    make golden        rewrites tests/golden/losses.json; say in the commit why the losses moved

Nothing else writes the file. The cases are in tests/golden_losses.py, and the tests compare.
"""

import json

from tests.golden_losses import GOLDEN, GOLDEN_CASES, first_losses

if __name__ == "__main__":
    losses = {case: first_losses(case) for case in GOLDEN_CASES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    print(f"wrote {GOLDEN}")
