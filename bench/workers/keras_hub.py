"""keras-hub on TensorFlow: `OPTCausalLM.generate` of a preset folder.

`jit_compile` is Keras's own choice unless the job's options give one: on machines without a GPU,
Keras 3.15 chooses a TensorFlow graph without XLA. Each new length of input is traced anew either way.
"""

from __future__ import annotations

import os
from typing import Any

from bench.workers.padding import with_room
from bench.workers.protocol import Job, Model, serve


def load(job: Job) -> Model:
    """See `bench.workers.protocol.serve`."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job.threads)
    tf.config.threading.set_inter_op_parallelism_threads(job.threads)
    import keras_hub

    model = keras_hub.models.OPTCausalLM.from_preset(job.checkpoint, preprocessor=None)
    model.compile(sampler="greedy", jit_compile=job.options.get("jit_compile", "auto"))

    def generate(token_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        inputs = with_room(token_ids, new_tokens)
        outputs = model.generate(inputs, stop_token_ids=None)
        rows: list[list[int]] = outputs["token_ids"][:, -new_tokens:].tolist()
        return rows

    def logits(token_ids: list[list[int]], places: int) -> Any:
        return model(with_room(token_ids, 0)).numpy()[:, -places:]

    return Model(generate, logits)


if __name__ == "__main__":
    serve(load, ("keras-hub", "keras", "tensorflow", "numpy"))
