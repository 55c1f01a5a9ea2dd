"""What parts of a schema cost llguidance, in parts: 1,000 of them take a router or an engine some 0.1 s at most.

Most things cost by their number and their length; the exceptions were found by the attacks in
`tests/security/test_grammars.py` (llguidance 1.9).
"""

import math
from collections.abc import Sequence
from decimal import Decimal


def of_text(text: str) -> int:
    """The length of a listed value or a property's name."""
    return len(text) // 100


def of_value(value: object, limit: int) -> int:
    """A JSON value of `const` or `enum`, with all its members. Stops counting beyond the limit."""
    parts, pending = 0, [value]
    while pending and parts <= limit:
        member = pending.pop()
        parts += 1 + (of_text(member) if isinstance(member, str) else 0)
        if isinstance(member, dict):
            pending += (*member, *member.values())
        elif isinstance(member, list):
            pending += member
    return parts


def of_pattern(pattern: str) -> int:
    """A regular expression: classes of characters, such as all letters, are large automatons."""
    return 5 + len(pattern) // 5


def of_property_patterns(number: int) -> int:
    """Patterns of properties' names: each is compared with each."""
    return number**2


def of_options(number: int) -> int:
    """Alternatives: in a recursion all may be possible at once, each within each."""
    return number**2 // 20


def of_rules(alternatives: int) -> int:
    """Alternatives of all rules of a client's grammar: where they are ambiguous, the time grows with their cube."""
    return alternatives**2 // 25


def of_optional_properties(number: int) -> int:
    """Properties of which a minimum number is required: each may be the one that is there."""
    return number**3 // 250


def of_multiples(factors: Sequence[Decimal]) -> int:
    """`multipleOf`: an automaton with a state for each remainder by the least common multiple."""
    decimals = max((-int(number.as_tuple().exponent) for number in factors), default=0)
    return math.lcm(*(int(number.scaleb(max(0, decimals))) for number in factors)) // 10
