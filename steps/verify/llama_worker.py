"""Runs inside llama.cpp's own environment, where nothing of Bitsmith is: logits of a GGUF for windows of tokens.

    python llama_worker.py FILE.gguf TOKENS.npy OUT.npy
    python llama_worker.py FILE.gguf --tokenize TEXTS.json OUT.json

TOKENS is int32 [N, S], OUT float32 [N, S, V]; windows are independent. Two threads at most.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

THREADS = 2


def logits(model: Any, tokens: Any) -> Any:
    """Logits at every position of every window, each from an empty cache."""
    import llama_cpp as c
    import numpy as np

    windows, length = tokens.shape
    parameters = c.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
    parameters.n_threads = parameters.n_threads_batch = THREADS
    context = c.llama_init_from_model(model, parameters)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(length, 0, 1)
    found = np.empty((windows, length, vocabulary), np.float32)
    for n in range(windows):
        c.llama_memory_clear(c.llama_get_memory(context), True)
        batch.n_tokens = length
        for i, token in enumerate(tokens[n]):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, True
        if c.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        found[n] = np.ctypeslib.as_array(c.llama_get_logits(context), (length, vocabulary))
    return found


def tokenize(model: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, nothing added."""
    import llama_cpp as c

    vocabulary, found = c.llama_model_get_vocab(model), []
    for text in texts:
        data = text.encode()
        room = len(data) + 16
        ids = (c.llama_token * room)()
        count = c.llama_tokenize(vocabulary, data, len(data), ids, room, False, False)
        found.append(list(ids[:count]))
    return found


def main(arguments: list[str]) -> None:
    """One call."""
    import llama_cpp as c
    import numpy as np

    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    c.llama_log_set(silent, None)
    c.llama_backend_init()
    parameters = c.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = c.llama_model_load_from_file(arguments[0].encode(), parameters)
    if not model:
        raise SystemExit("llama.cpp does not load the file")
    if arguments[1] == "--tokenize":
        texts = json.loads(Path(arguments[2]).read_text("utf-8"))
        Path(arguments[3]).write_text(json.dumps(tokenize(model, texts)), "utf-8")
    else:
        np.save(arguments[2], logits(model, np.load(arguments[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
