"""What checks the answer to an exercise in a notebook."""

from typing import Any

import numpy as np
from torch import Tensor


def check(answer: Any, expected: Any, hint: str) -> None:
    """Print whether an answer is right; if not, a hint. No answer yet, None, is no error.

    Args:
        answer: of the learner: a number, a text, or anything that becomes an array.
        expected: the right one. A number may be off by a thousandth of it, a whole number may not.
        hint: one sentence that helps to find the mistake.
    """
    if answer is None:
        print("No answer yet: write yours in this cell, and run it again.")
    elif _is_same(answer, expected):
        print("Right!")
    else:
        print(f"Not yet. {hint}")


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


def _is_same(answer: Any, expected: Any) -> bool:
    try:
        found = _array(answer)
    except ValueError:  # a list of lists of several lengths
        return False
    wanted = _array(expected)
    if found.shape != wanted.shape:
        return False
    if wanted.dtype.kind in "biufc" and found.dtype.kind in "biufc":
        off = 1e-3 if wanted.dtype.kind in "fc" else 0.0
        return bool(np.allclose(found, wanted, rtol=off, atol=1e-9))
    return bool(np.all(found == wanted))
