"""One command for every row of the benchmark; README.md says what they are.

python experiments/throughput/benchmark.py                  # everything: results.json
python experiments/throughput/benchmark.py --rows A,C       # some rows, the others are kept
python experiments/throughput/benchmark.py --quick          # tiny models, half a minute: does everything run?
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")  # deprecation notes of the packages compared, many a step
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import transformers

    from experiments.throughput.run import main

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    sys.exit(main(sys.argv[1:]))
