"""What takes labels as X, varied."""

from sklearn.preprocessing import LabelBinarizer, LabelEncoder, MultiLabelBinarizer

from tests.families.conformance import LISTS, OBJECT_SERIES, SERIES, Case


def labels():
    for name in ("text", "small", "flag", "whole"):
        yield Case(LabelEncoder(), (name,), (*SERIES, "list"))
        yield Case(LabelBinarizer(), (name,), (*SERIES, "list"))
    for name in ("text_holes", "kind", "kind_holes", "holes"):
        yield Case(LabelEncoder(), (name,), SERIES)
    yield Case(LabelEncoder(), ("object_none",), (*OBJECT_SERIES, "object array"))
    yield Case(LabelBinarizer(), ("kind",), SERIES)
    yield Case(LabelBinarizer(neg_label=-1, pos_label=2), ("text",), ("series", "object array"))
    yield Case(LabelBinarizer(sparse_output=True), ("text",), ("series", "object array"))


def sets_of_labels():
    for name in ("tokens", "numbers"):
        yield Case(MultiLabelBinarizer(), (name,), OBJECT_SERIES + LISTS)
        yield Case(MultiLabelBinarizer(sparse_output=True), (name,), ("series", "object array"))
    yield Case(MultiLabelBinarizer(classes=list(range(9, -1, -1))), ("numbers",), ("series", "object array"))


TRANSFORMERS = (labels, sets_of_labels)
PREDICTORS = ()
