"""Makes lightgbm.json: LightGBM's scores on the rows of src/synthetic.rs, which a test compares
with ours. Needs lightgbm, numpy and scikit-learn; run it by hand when the rows or the parameters
change."""

import json
import math

import lightgbm
import numpy
from sklearn.metrics import log_loss, roc_auc_score

MASK = (1 << 64) - 1


def synthetic(rows, seed):
    state = seed

    def unit():
        nonlocal state
        state ^= state >> 12
        state ^= (state << 25) & MASK
        state ^= state >> 27
        return ((state * 0x2545F4914F6CDD1D & MASK) >> 11) / (1 << 53)

    values, labels = [], []
    for _ in range(rows):
        x = [numpy.float32(unit() * 4.0 - 2.0) for _ in range(6)]
        x += [numpy.float32(math.floor(unit() * 8.0)) for _ in range(2)]
        gaps = [unit() < 0.1 for _ in range(3)]
        margin = 1.5 * float(x[0]) - float(x[1]) * float(x[2]) - 0.5 * abs(float(x[4])) - 0.6
        margin += 1.0 if x[3] > 0.5 else 0.0
        margin += 0.8 if x[6] in (3.0, 5.0) else 0.0
        margin += 0.7 if gaps[1] else 0.0
        labels.append(1.0 if unit() < 0.5 + 0.5 * margin / (1.0 + abs(margin)) else 0.0)
        values.append([math.nan if i < 3 and gaps[i] else v for i, v in enumerate(x)])
    return numpy.array(values, numpy.float32), numpy.array(labels)


values, labels = synthetic(30_000, 42)
parameters = dict(
    objective="binary", learning_rate=0.1, num_leaves=15, min_data_in_leaf=20, lambda_l2=1.0,
    max_bin=255, num_threads=1, deterministic=True, seed=1, verbose=-1,
)
model = lightgbm.train(parameters, lightgbm.Dataset(values[:20_000], labels[:20_000]), 100)
scores = model.predict(values[20_000:])
with open("lightgbm.json", "w") as file:
    json.dump(
        dict(
            lightgbm=lightgbm.__version__,
            rows_digest=float(numpy.nansum(values.astype(numpy.float64))),
            label_share=float(labels.mean()),
            auc=roc_auc_score(labels[20_000:], scores),
            log_loss=log_loss(labels[20_000:], scores),
        ),
        file,
        indent=1,
    )
