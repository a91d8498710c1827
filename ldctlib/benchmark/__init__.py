"""Methods x cases x doses -> one tidy table with metrics, times and paired bootstrap intervals by patient.

    python -m ldctlib.benchmark --methods ldct,gaussian,nafnet                    # phantoms
    python -m ldctlib.benchmark --methods ldct,gaussian,nafnet --real FOLDER      # full/low-dose pairs

Every result carries what it depends on: window, reference kind, LPIPS backbone and trunk, n, interval, device.
"""

from ldctlib.benchmark.cases import BenchmarkCase, collection_cases, phantom_cases, real_pairs
from ldctlib.benchmark.measures import DEFAULT_METRICS, METRICS, CaseMetric
from ldctlib.benchmark.record import record
from ldctlib.benchmark.result import BenchmarkResult
from ldctlib.benchmark.run import run
from ldctlib.metrics.statistics import paired_bootstrap
