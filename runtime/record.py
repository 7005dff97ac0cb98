"""What all parts of a manifest are made of."""

from typing import Annotated

import msgspec

MAX_VALUES = 2**24
"""How many values a row may have of anything: an image of 4,096 by 4,096, and no more than memory has room for."""

Size = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Text = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z")]
"""Words to be shown: nothing in them that a terminal obeys."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the manifest; unknown fields are refused, so that nothing in it goes unread.

    Files with records do not postpone their annotations: msgspec would evaluate each of them as text when a process
    reads its first manifest, for longer than a session takes to load.
    """
