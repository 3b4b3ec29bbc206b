"""The places that raw files are fetched from, by their kind: hub.py, bucket.py, url_list.py."""

from __future__ import annotations

from pipeline.bucket import BucketPlace
from pipeline.hub import HubPlace
from pipeline.listing import Place
from pipeline.origins import Origin
from pipeline.url_list import UrlPlace
from pipeline.web import Patience


def open_place(origin: Origin, *, patience: Patience, revision: str | None = None) -> Place:
    """The origin as a place that can be asked. revision: of a listing of it that was made earlier.

    Raises ValueError for a bucket whose package is missing.
    """
    match origin.kind:
        case "hub":
            return HubPlace(origin, patience=patience, revision=revision)
        case "bucket":
            return BucketPlace(origin, patience=patience)
        case "urls":
            return UrlPlace(origin, patience=patience)
    raise ValueError(f"{origin}: nothing is fetched from a folder")
