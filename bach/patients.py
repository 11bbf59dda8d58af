"""Whose images these are: the one reader of patient tables."""

import os

import pandas as pd

from bach.labels import image_key
from bach.runs import InputError


def read_patients(path: str | os.PathLike) -> pd.DataFrame:
    """Read a patient table.

    Args:
        path: CSV file with the columns `image_id` and `patient`, which is empty where
            the patient is unknown; other columns are kept.

    Returns:
        The table as stripped text.

    Raises:
        InputError: If the file cannot be read, lacks a column or names an image twice.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(
            f"{path} must be a readable CSV file.\nReceived: {error}.\nCheck the path."
        ) from error
    if not {"image_id", "patient"} <= set(table.columns):
        raise InputError(
            f"{path} must have the columns image_id and patient.\n"
            f"Received: {', '.join(map(str, table.columns))}.\n"
            "Add a header line, or name another patient table."
        )
    for name in table.columns:
        table[name] = table[name].fillna("").str.strip()
    keys = table["image_id"].map(image_key)
    if keys.duplicated().any():
        doubled = ", ".join(keys[keys.duplicated()].unique()[:10])
        raise InputError(
            f"Every image must stand in {path} once (file endings and case do not matter).\n"
            f"Received more than once: {doubled}.\nKeep one row an image."
        )
    return table


def with_patients(table: pd.DataFrame, patients: pd.DataFrame | None) -> pd.DataFrame:
    """Give a table the patients of another one.

    Args:
        table: Any table with `image_id`.
        patients: Table of `image_id` and `patient`, or None to leave the first
            table's own. Ids match without folder, file ending and case.

    Returns:
        A copy of the table whose `patient` is that of `patients`; empty where
        the image does not stand there.
    """
    if patients is None:
        return table.copy()
    known = dict(zip(patients["image_id"].map(image_key), patients["patient"], strict=True))
    found = table["image_id"].map(image_key).map(known).fillna("")
    return table.assign(patient=found.astype(str))
