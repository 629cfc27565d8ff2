"""What `unidd spectrum` finds, as tables for the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unidd_pl.bands import BAND_MEANING, BANDS, LIVING_BANDS, LayerMatch, LayerSpectrum, SpectralBand
from unidd_pl.responses import Response
from unidd_pl.tables import text_table

_DIGITS = 6  # significant, of numbers in the JSON file: more than the statistics of any set are worth


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Real spectra, the filters of the methods over them, and what distilled sets match.

    Args:
        spectra: Real spectrum of each layer.
        responses: Filters of the methods.
        matches: How far each distilled set, by name, matches each layer.
    """

    spectra: tuple[LayerSpectrum, ...]
    responses: tuple[Response, ...]
    matches: Mapping[str, tuple[LayerMatch, ...]]

    def tables(self) -> str:
        """Return a table of the real spectrum, and one for each distilled set."""
        parts = [f"Real spectrum\n\n{self._real_table()}"]
        parts += [f"{name}\n\n{self._match_table(layers)}" for name, layers in self.matches.items()]
        return "\n\n".join(parts)

    def _real_table(self) -> str:
        head = ("layer", "channels", "λ max", "λ median", "low", "middle", "high", "dead")
        rows = []
        for one in self.spectra:
            shares = one.flc_share()
            bands = [_count_and_share(one.count(band), shares[band]) for band in LIVING_BANDS]
            largest = float(one.eigenvalues[0])
            median = float(one.alive.quantile(0.5)) if len(one.alive) else 0.0
            row = (one.layer, str(one.channels), f"{largest:.2e}", f"{median:.2e}", *bands, str(one.count("dead")))
            rows.append(row)
        return f"{text_table(head, rows)}\nλ median: without dead directions. By band: directions, share of Φ's energy."

    def _match_table(self, layers: Sequence[LayerMatch]) -> str:
        head = ("layer", *(f"Φ {band}" for band in LIVING_BANDS), *(f"Ψ {band}" for band in LIVING_BANDS))
        rows = [
            (
                spectrum.layer,
                *(_number(match.flc_matched[band]) for band in LIVING_BANDS),
                *(_number(match.variance_ratio[band]) for band in LIVING_BANDS),
            )
            for spectrum, match in zip(self.spectra, layers, strict=True)
        ]
        return (
            f"{text_table(head, rows)}\nΦ: share of the energy matched, 1 is all, below 0 is farther away than "
            "Φ_s = 0. Ψ: synthetic over real variance."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types; what has no value is null."""
        return {
            "bands": dict(BAND_MEANING),
            "responses": [
                {"filter": one.name, "methods": list(one.users), "round": one.round_index, "betas": _rounded(one.betas)}
                for one in self.responses
            ],
            "layers": [self._layer(index) for index in range(len(self.spectra))],
        }

    def _layer(self, index: int) -> dict[str, Any]:
        spectrum = self.spectra[index]
        return {
            "layer": spectrum.layer,
            "channels": spectrum.channels,
            "eigenvalues": _rounded(spectrum.eigenvalues),
            "directions": {band: spectrum.count(band) for band in BANDS},
            "flc_share": _rounded_bands(spectrum.flc_share()),
            # In the order of the list above, over the eigenvalues that are not dead.
            "responses": [_rounded(one.at(spectrum.alive, index)) for one in self.responses if len(spectrum.alive)],
            "sets": {
                name: {
                    "flc_matched": _rounded_bands(layers[index].flc_matched),
                    "variance_ratio": _rounded_bands(layers[index].variance_ratio),
                    "variances": _rounded(layers[index].variances),
                }
                for name, layers in self.matches.items()
            },
        }


def _count_and_share(count: int, share: float | None) -> str:
    return f"{count}, {'n/a' if share is None else f'{share:.1%}'}"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _rounded(values: Sequence[float] | Tensor) -> list[float]:
    return [float(f"{float(value):.{_DIGITS}g}") for value in values]


def _rounded_bands(values: Mapping[SpectralBand, float | None]) -> dict[str, float | None]:
    return {band: None if value is None else _rounded([value])[0] for band, value in values.items()}
