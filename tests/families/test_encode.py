"""What the encoders remember from block to block, and what they must not."""

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from dpipe.families.encode import _lookups
from dpipe.families.fitted import predict_block

FRAME = pd.DataFrame({"a": ["x", "y", None, "x"], "b": ["p", "q", "q", "p"]})


def dense(found):
    return found.toarray() if hasattr(found, "toarray") else np.asarray(found)


def encoders():
    return [
        OneHotEncoder(handle_unknown="ignore"),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
    ]


@pytest.mark.parametrize("encoder", encoders(), ids=lambda e: type(e).__name__)
def test_blocks_of_new_and_old_values(encoder):
    encoder.fit(FRAME)
    for values in (["x", "y"], ["y", "new"], ["new", None], ["newer", "x"]):
        block = pd.DataFrame({"a": values, "b": ["q", "p"]})
        np.testing.assert_array_equal(
            dense(predict_block(encoder, block, "transform")), dense(encoder.transform(block))
        )


@pytest.mark.parametrize("encoder", encoders(), ids=lambda e: type(e).__name__)
def test_an_encoder_that_is_fitted_again_is_asked_again(encoder):
    block = pd.DataFrame({"a": ["x", "y"], "b": ["p", "q"]})
    encoder.fit(FRAME)
    predict_block(encoder, block, "transform")
    encoder.fit(FRAME.replace({"x": "aa", "p": "zz"}))
    np.testing.assert_array_equal(
        dense(predict_block(encoder, block, "transform")), dense(encoder.transform(block))
    )


def test_equal_keys_of_other_types_are_kept_apart():
    encoder = OrdinalEncoder().fit(pd.DataFrame({"a": [0, 1, 2]}))
    for values in ([1, 2], [1.0, 2.0], [True, False]):
        block = pd.DataFrame({"a": values})
        np.testing.assert_array_equal(predict_block(encoder, block, "transform"), encoder.transform(block))


def test_values_that_are_no_category_are_not_remembered():
    encoder = OneHotEncoder(handle_unknown="ignore").fit(FRAME)
    for i in range(50):
        predict_block(encoder, pd.DataFrame({"a": [f"id {i}"], "b": ["p"]}), "transform")
    _, by_types = _lookups[encoder]
    assert all(len(lookup.rows) <= 3 for lookups in by_types.values() for lookup in lookups)


def test_none_and_nan_are_not_taken_for_each_other():
    values = pd.DataFrame({"a": ["x", "y", None]}, dtype=object)
    encoder = OneHotEncoder(handle_unknown="ignore").fit(values)
    predict_block(encoder, values, "transform")
    block = pd.DataFrame({"a": ["x", np.nan]}, dtype=object)
    np.testing.assert_array_equal(
        dense(predict_block(encoder, block, "transform")), dense(encoder.transform(block))
    )
