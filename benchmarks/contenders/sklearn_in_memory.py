"""One scikit-learn pipeline on one pandas frame that holds every row at once.

The transformers are fitted on the whole frame; the last step then learns from the same 18 slices as
every contender, through `partial_fit`, each transformed just before. (`Pipeline.fit` with `max_iter=1`
would shuffle all rows instead, and hold all of them transformed as well.)
"""

import pandas as pd
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from benchmarks.contenders.job import CLASSES, Job, main, make_model
from benchmarks.made_table import LABEL


def run(job: Job) -> float:
    """Fit on the training files, return the ROC AUC on the others."""
    frame = pd.read_parquet(job.train)
    job.clock.lap("read")
    model = make_model()
    transformers, classifier = model[:-1], model[-1]
    transformers.fit(frame)
    job.clock.lap("statistics")
    start = 0
    for path in job.train:
        part = frame.iloc[start : start + pq.read_metadata(path).num_rows]
        start += len(part)
        X = transformers.transform(part)
        job.clock.lap("transform")
        classifier.partial_fit(X, part[LABEL], classes=CLASSES)
        job.clock.lap("learn")
    held_out = pd.read_parquet(job.test)
    auc = float(roc_auc_score(held_out[LABEL], model.decision_function(held_out)))
    job.clock.lap("score")
    return auc


if __name__ == "__main__":
    main(run)
