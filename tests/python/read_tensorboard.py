"""Prints the scalars of a folder of event files as TensorBoard reads them: {tag: [[step, value], ...]}."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: read_tensorboard.py FOLDER")
    folder = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
    folder.Reload()
    tags = folder.Tags()
    out = {tag: [[e.step, e.value] for e in folder.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        out[tag] = [[e.step, float(tensor_util.make_ndarray(e.tensor_proto))] for e in folder.Tensors(tag)]
    print(json.dumps(out))


if __name__ == "__main__":
    main()
