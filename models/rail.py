"""Our nearest neighbours as stages of RAIL: an informer and an estimator of magnitudes, for its pipelines.

    pipe.inform = RedshelfKnnInformer.build(connections={...}, model="model.npz", hdf5_groupname="photometry")
    pipe.estimate = RedshelfKnnEstimator.build(connections={"model": pipe.inform.io.model}, id_col="id")

Needs the extra `sim` (`pz-rail-base` 2) and is imported by nothing else here. Bands, their limits and the redshift grid
are options of the informer and travel with the model, so that an estimator cannot be told others. The model's file
holds plain arrays, never a pickle; answers are qp histograms on our own grid, uniform in ln(1+z).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import qp
from rail.core.common_params import Param, SharedParams
from rail.core.data import ModelHandle, QPHandle, TableHandle
from rail.core.enums import DistributionType
from rail.estimation.estimator import CatEstimator
from rail.estimation.informer import CatInformer

from redshelf.models.errors import BadInput
from redshelf.models.fitting import checked_redshifts
from redshelf.models.frame import Frame, fit_frame
from redshelf.models.knn import KnnRedshift, fit_knn
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.stored_parts import from_parts, to_parts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Magnitude columns by wavelength, the reference among them, and what stands for a source not detected.

    `limits`: the magnitude that each band's non-detections take. `nondetect`: how they are written, None for NaN.
    """

    bands: tuple[str, ...]
    reference: str
    limits: tuple[float, ...]
    nondetect: float | None
    nonobserved: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features: adjacent colours, then the reference magnitude."""
        return (*(f"{blue}-{red}" for blue, red in pairwise(self.bands)), self.reference)

    def features(self, table: Mapping[str, Any]) -> Floats:
        """(N, bands) of a table's columns; `BadInput` for one that is absent, and for a band that was not observed."""
        magnitudes = []
        for name, limit in zip(self.bands, self.limits, strict=True):
            value = column(table, name)
            empty = np.isnan(value) if self.nondetect is None else np.isclose(value, self.nondetect, atol=0.01)
            value = np.where(empty, limit, value)
            bad = ~np.isfinite(value) | np.isclose(value, self.nonobserved)
            if bad.any():
                raise BadInput(
                    f"column {name!r} holds {value[bad][0]} in row {int(bad.argmax())}: expected magnitudes, or "
                    f"{'NaN' if self.nondetect is None else self.nondetect} where nothing was detected"
                )
            magnitudes.append(value)
        colours = [blue - red for blue, red in pairwise(magnitudes)]
        return np.column_stack([*colours, magnitudes[self.bands.index(self.reference)]])


@dataclass(frozen=True)
class RailKnn:
    """What an estimator needs: which columns, the space of their features, and the neighbours in it."""

    columns: Columns
    frame: Frame
    knn: KnnRedshift

    @classmethod
    def fit(cls, table: Mapping[str, Any], z: npt.ArrayLike, columns: Columns, *, edges: Floats, seed: int) -> RailKnn:
        """Fit on labels; they stand for the target, so nothing is weighted. `BadInput` as in `fit_redshift`."""
        features = columns.features(table)
        truth, _ = checked_redshifts(z, len(features))
        if truth.max() > edges[-1]:
            raise BadInput(f"zmax={edges[-1]:.3f}: expected at least the largest labelled redshift, {truth.max()}")
        frame = fit_frame(features, features, columns.names)
        own = np.arange(len(truth), dtype=np.int64)[:, None]
        knn, _ = fit_knn(
            frame.transform(features), truth, edges=edges, importance=np.ones(len(truth)), exclude=own, seed=seed
        )
        return cls(columns, frame, knn)

    def predict(self, table: Mapping[str, Any]) -> Pdf:
        """Densities of the sources of a table."""
        return self.knn.predict(self.frame.transform(self.columns.features(table))).pdf


PARTS: dict[str, Any] = {"columns": Columns, "frame": Frame, "knn": KnnRedshift}


class ArraysHandle(ModelHandle):  # type: ignore[misc]
    """A `RailKnn` in an .npz of arrays. RAIL's own handle of models reads and writes pickles."""

    suffix = "npz"

    @classmethod
    def _open(cls, path: str, **kwargs: Any) -> Any:
        return Path(path).open("wb") if kwargs.get("mode") == "w" else cls._read(path)

    @classmethod
    def _read(cls, path: str, **kwargs: Any) -> RailKnn:
        with np.load(path, allow_pickle=False) as file:
            if "config" not in file.files:
                raise BadInput(f"{path}: expected the model of a RedshelfKnnInformer")
            config = json.loads(bytes(file["config"]))
            return RailKnn(**from_parts(PARTS, {name: file[name] for name in file.files}, config))

    @classmethod
    def _write(cls, data: RailKnn, path: str, **kwargs: Any) -> None:
        arrays, config = to_parts({name: getattr(data, name) for name in PARTS})
        document = np.frombuffer(json.dumps(config, allow_nan=False).encode(), dtype=np.uint8)
        with Path(path).open("wb") as file:  # by handle: RAIL's temporary names end in anything
            np.savez(file, config=document, **arrays)  # type: ignore[arg-type]


class RedshelfKnnInformer(CatInformer):  # type: ignore[misc]
    """Fits `RailKnn` on a table of magnitudes and redshifts; `zmax` ends the grid, of `log_step` in ln(1+z)."""

    name = "RedshelfKnnInformer"
    entrypoint_function = "inform"
    interactive_function = "redshelf_knn_informer"
    outputs = [("model", ArraysHandle)]  # noqa: RUF012
    config_options = CatInformer.config_options.copy()
    config_options.update(
        bands=SharedParams.copy_param("bands"),
        ref_band=SharedParams.copy_param("ref_band"),
        redshift_col=SharedParams.copy_param("redshift_col"),
        nondetect_val=SharedParams.copy_param("nondetect_val"),
        nonobserved_val=SharedParams.copy_param("nonobserved_val"),
        mag_limits=SharedParams.copy_param("mag_limits"),
        zmax=SharedParams.copy_param("zmax"),
        log_step=Param(float, 0.004, msg="Step of the redshift grid in ln(1+z), which begins at 0"),
        seed=Param(int, 0, msg="Seed of the labels drawn to choose by leave-one-out"),
    )

    def columns(self) -> Columns:
        """What the options say of the table; `BadInput` where they contradict one another."""
        bands, options = tuple(self.config.bands), self.config
        if len(bands) < 2 or len(set(bands)) < len(bands) or options.ref_band not in bands:
            raise BadInput(
                f"bands={bands}, ref_band={options.ref_band!r}: expected two or more, the reference among them"
            )
        missing = [name for name in bands if name not in options.mag_limits]
        if missing:
            raise BadInput(f"mag_limits: expected one for each band, and {', '.join(missing)} has none")
        nondetect = None if np.isnan(options.nondetect_val) else float(options.nondetect_val)
        limits = tuple(float(options.mag_limits[name]) for name in bands)
        return Columns(bands, str(options.ref_band), limits, nondetect, float(options.nonobserved_val))

    def run(self) -> None:
        """Fit, and hand the model over."""
        data = self.get_data("input")
        table = data[self.config.hdf5_groupname] if self.config.hdf5_groupname else data
        self.model = RailKnn.fit(
            table,
            column(table, self.config.redshift_col),
            self.columns(),
            edges=default_edges(self.config.zmax, step=self.config.log_step),
            seed=self.config.seed,
        )
        self.add_data("model", self.model)


class RedshelfKnnEstimator(CatEstimator):  # type: ignore[misc]
    """Densities of a table of magnitudes, chunk by chunk, with `zmode`, `zmedian` and `zmean` beside them.

    `zmin`, `zmax` and `nzbins` of RAIL are the grid of its own point estimates; the densities lie on the model's.
    """

    name = "RedshelfKnnEstimator"
    entrypoint_function = "estimate"
    interactive_function = "redshelf_knn_estimator"
    inputs = [("model", ArraysHandle), ("input", TableHandle)]  # noqa: RUF012
    outputs = [("output", QPHandle)]  # noqa: RUF012

    @classmethod
    def default_distribution_type(cls) -> DistributionType:
        """Densities given the photometry, with the labels' redshifts as the prior."""
        return DistributionType.posterior

    def _process_chunk(self, start: int, end: int, data: Any, first: bool) -> None:
        pdf = self.model.predict(data)
        answer = qp.Ensemble(qp.hist, data={"bins": pdf.edges, "pdfs": pdf.density, "norm": False, "warn": False})
        answer.set_ancil({"zmode": pdf.mode(), "zmedian": pdf.median(), "zmean": pdf.mean()})
        self._do_chunk_output(answer, start, end, first, data=data)


def column(table: Mapping[str, Any], name: str) -> Floats:
    """One column of a table as RAIL hands it over (a dict, a data frame), (N,); `BadInput` where it is absent."""
    if name not in table:
        raise BadInput(f"the table has no column {name!r}: it has {', '.join(map(str, table))}")
    return np.asarray(table[name], dtype=np.float64)
