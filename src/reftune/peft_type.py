"""The member `REFT` of PEFT's closed enum of methods: the one hack of the project, kept here.

PEFT looks methods up by `peft.PeftType`, an enum to which nothing can be added by its API.  It is extended in place,
once; a PEFT that has a REFT of its own is refused, so that neither is used by mistake.

Must not know: the configuration and the tuner, which are registered in `tuner.register`.
"""

from __future__ import annotations

from peft.utils.peft_types import PeftType

__all__ = ["NAME", "PREFIX", "REFT"]

NAME = "REFT"
MARK = "_made_by_reftune"
# Of parameter names.  Without "ref" (TRL calls its reference adapter so) and not part of the name of the child module
# that holds it (PEFT's delete_adapter skips every module whose name has the prefix in it).
PREFIX = "intervention_"


def extend_enum(enum: type[PeftType], name: str) -> PeftType:
    """The member `name` of a str enum, its value being its name; made if it is not there yet.

    Raises:
        RuntimeError: there is such a member already and reftune did not make it.
    """
    existing = enum.__members__.get(name)
    if existing is not None and getattr(existing, MARK, False):
        return existing
    if existing is not None:
        raise RuntimeError(
            f"peft has a method called {name} of its own, so reftune cannot register its own; "
            "use that one, or install a peft that does not have it"
        )
    member = str.__new__(enum, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = enum  # type: ignore[attr-defined]
    member._sort_order_ = len(enum._member_names_)  # type: ignore[attr-defined]
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[name] = member
    setattr(member, MARK, True)
    type.__setattr__(enum, name, member)
    return member


REFT = extend_enum(PeftType, NAME)
