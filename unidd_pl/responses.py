"""What the filters of all methods do over a spectrum: the curves of `unidd spectrum`.

Legend: l layers, m eigenvalues λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from unidd_pl.spectral import METHODS, CosineCurriculum, Curriculum, Method, SpectralFilter, Term

MAX_ROUNDS = 10  # curves of a curriculum; more cannot be told apart

_OPERAND_SIGN = {"ffc": "Ψ", "flc": "Φ"}


@dataclass(frozen=True)
class Response:
    """One filter with its β, and the methods that use it.

    Args:
        filter: The spectral filter f.
        betas: β of each layer, eigenvalue units; empty where the filter has none.
        users: Methods, with the operand where it is only one of two, for example ``hfm`` and ``frepo (Φ)``.
        round_index: Round of the curriculum, from 0; None for what does not change over rounds.
    """

    filter: SpectralFilter
    betas: tuple[float, ...]
    users: tuple[str, ...]
    round_index: int | None = None

    def at(self, eigenvalues: Tensor, layer: int) -> Tensor:
        """Return f(λ)/max f, (m,): in [0, 1] for the filters of the list, so that their curves share an axis.

        Args:
            eigenvalues: (m,) λ of the layer, descending.
            layer: Position of the layer.
        """
        response = self.filter.response(eigenvalues, self.betas[layer] if self.betas else 1.0)
        largest = response.abs().max()
        return response / largest if largest > 0 else response

    @property
    def name(self) -> str:
        """Formula, with the filter's settings where it has some."""
        settings = ", ".join(f"{key} = {value}" for key, value in sorted(vars(self.filter).items()))
        return f"{self.filter.formula} ({settings})" if settings else self.filter.formula


def shown_rounds(num_rounds: int) -> tuple[int, ...]:
    """Return at most `MAX_ROUNDS` rounds, the first and the last among them, evenly spaced."""
    if num_rounds <= MAX_ROUNDS:
        return tuple(range(num_rounds))
    return tuple(round(step * (num_rounds - 1) / (MAX_ROUNDS - 1)) for step in range(MAX_ROUNDS))


def methods_beside(method: Method) -> tuple[Method, ...]:
    """Return every named method, one of them replaced by `method` where it has its name, added where none has."""
    named = [one() for one in METHODS]  # type: ignore[call-arg]  # the named methods need no arguments
    listed = [method if one.name == method.name else one for one in named]
    return (*listed, *([] if method in listed else [method]))


def responses(
    methods: Sequence[Method],
    beta: float,
    num_rounds: int,
    spectra: Sequence[Tensor],
    curriculum: Curriculum | None = None,
) -> tuple[Response, ...]:
    """Return the different filters of all methods, those that need a curriculum once for each round shown.

    Args:
        methods: The methods.
        beta: β of the config, eigenvalue units; fixed methods keep it.
        num_rounds: Images per class.
        spectra: Eigenvalues of the real FFC, (c,), for each of l layers.
        curriculum: β over the rounds; None is the cosine of CFM.
    """
    fixed = (beta,) * len(spectra)
    curriculum = curriculum or CosineCurriculum()
    found: dict[str, Response] = {}
    for method in methods:
        for term in method.terms:
            if method.scheduled and term.filter.uses_beta:
                for index in shown_rounds(num_rounds):
                    betas = curriculum.betas_at(beta, index, num_rounds, spectra)
                    _count_in(found, Response(term.filter, betas, (), index), method, term)
            else:
                betas = fixed if term.filter.uses_beta else ()
                _count_in(found, Response(term.filter, betas, ()), method, term)
    return tuple(found.values())


def _count_in(found: dict[str, Response], response: Response, method: Method, term: Term) -> None:
    """Add a response, or the method to the users of one that is the same."""
    settings = sorted(vars(response.filter).items())
    key = f"{type(response.filter).__qualname__} {settings} {response.betas} {response.round_index}"
    known = found.get(key, response)
    found[key] = replace(
        known, users=(*known.users, *(user for user in (_user(method, term),) if user not in known.users))
    )


def _user(method: Method, term: Term) -> str:
    """Return the method's name, and the operand unless the filter takes both."""
    operands = {one.operand for one in method.terms if type(one.filter) is type(term.filter)}
    if len(operands) == 2:
        return method.name
    return f"{method.name} ({_OPERAND_SIGN[term.operand]}{' diagonal' if term.diagonal else ''})"
