"""Our nearest neighbours inside a RAIL pipeline, on a few hundred rows of RAIL's DC2 tables."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("rail.estimation.estimator", reason="the `sim` extra is not installed")

import qp
import rail
from rail.core.stage import RailPipeline
from rail.evaluation.dist_to_point_evaluator import DistToPointEvaluator
from rail.evaluation.point_to_point_evaluator import PointToPointEvaluator

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.frame import fit_frame
from redshelf.models.knn import fit_knn
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.rail import ArraysHandle, RedshelfKnnEstimator, RedshelfKnnInformer

TABLES = next(path for path in (Path(p) / "examples_data" / "testdata" for p in rail.__path__) if path.is_dir())
BANDS = [f"mag_{band}_lsst" for band in "ugrizy"]
LABELS, SOURCES, CHUNK = 400, 401, 150  # qp's quartiles of 401 numbers are numbers, as ours are
pytestmark = pytest.mark.filterwarnings("ignore:::(qp|rail|ceci|tables_io)", "ignore::DeprecationWarning")


def _few(kind: str, rows: int) -> dict[str, np.ndarray]:
    """Rows spread over the table, which is sorted by pixel of the sky."""
    with h5py.File(TABLES / f"test_dc2_{kind}_9816.hdf5") as file:
        return {name: value[:: len(value) // rows][:rows] for name, value in file["photometry"].items()}


def _written(table: dict[str, np.ndarray], path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in table.items():
            file[f"photometry/{name}"] = value
    return path


def _features(table: dict[str, np.ndarray]) -> np.ndarray:
    limits = dict(zip(BANDS, (27.79, 29.04, 29.06, 28.62, 27.98, 27.05), strict=True))
    seen = [np.where(np.isclose(table[b], 99, atol=0.01), limits[b], table[b].astype(np.float64)) for b in BANDS]
    return np.column_stack([*(a - b for a, b in pairwise(seen)), seen[3]])


@pytest.fixture(scope="module")
def direct() -> Pdf:
    """`KnnRedshift` fitted and asked without RAIL."""
    labels, sources = _features(_few("training", LABELS)), _features(_few("validation", SOURCES))
    frame = fit_frame(labels, labels, (*(f"{a}-{b}" for a, b in pairwise("ugrizy")), "i"))
    model, _ = fit_knn(
        frame.transform(labels),
        _few("training", LABELS)["redshift"],
        edges=default_edges(3.0),
        importance=np.ones(LABELS),
        exclude=np.arange(LABELS)[:, None],
    )
    return model.predict(frame.transform(sources)).pdf


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline of two stages, each of which ceci ran as a process of its own."""
    folder = tmp_path_factory.mktemp("rail")
    inputs = {
        "input_inform": str(_written(_few("training", LABELS), folder / "train.hdf5")),
        "input_estimate": str(_written(_few("validation", SOURCES), folder / "test.hdf5")),
    }
    pipe = RailPipeline()
    pipe.inform = RedshelfKnnInformer.build(aliases={"input": "input_inform"}, hdf5_groupname="photometry")
    pipe.estimate = RedshelfKnnEstimator.build(
        aliases={"input": "input_estimate"},
        connections={"model": pipe.inform.io.model},
        hdf5_groupname="photometry",
        chunk_size=CHUNK,
        id_col="id",
    )
    where = {"output_dir": str(folder), "log_dir": str(folder), "resume": False}
    pipe.initialize(inputs, where, None)
    pipe.save(str(folder / "pipeline.yml"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join(filter(None, [str(Path(__file__).parent / "links"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "ceci.main", str(folder / "pipeline.yml")],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr + "".join(p.read_text() for p in folder.glob("*.out"))
    return folder


def test_a_pipeline_answers_what_our_neighbours_answer_without_it(ran: Path, direct: Pdf) -> None:
    answer = qp.read(str(ran / "output_estimate.hdf5"))
    assert answer.npdf == SOURCES
    assert np.allclose(np.squeeze(answer.metadata["bins"]), direct.edges)
    assert np.abs(answer.objdata["pdfs"] - direct.density).max() < 1e-9 * direct.density.max()
    assert np.array_equal(answer.ancil["id"], _few("validation", SOURCES)["id"])
    for name, value in (("zmode", direct.mode()), ("zmedian", direct.median()), ("zmean", direct.mean())):
        assert np.squeeze(answer.ancil[name]) == pytest.approx(value, abs=1e-9)


def test_the_model_is_arrays_that_numpy_reads_without_pickle(ran: Path) -> None:
    with np.load(ran / "model_inform.npz", allow_pickle=False) as file:
        assert file["knn.bank"].shape == (LABELS, len(BANDS))
    assert ArraysHandle("model", path=str(ran / "model_inform.npz")).read().columns.bands == tuple(BANDS)


def _evaluated(kind: type, ran: Path, names: list[str], **options: object) -> dict[str, np.ndarray]:
    """Scores of the pipeline's file by an evaluator of RAIL."""
    stage = kind.make_stage(
        name=kind.__name__,
        metrics=names,
        force_exact=True,
        hdf5_groupname="photometry",
        output_mode="return",
        **options,
    )
    truth = {"photometry": {"redshift": _few("validation", SOURCES)["redshift"]}}
    found = stage.evaluate(qp.read(str(ran / "output_estimate.hdf5")), truth)
    one = {name: np.squeeze(value) for name, value in found["summary"].data.items()}
    curves = found["single_distribution_summary"].data.items()
    return one | {name: np.squeeze(value.objdata["locs"]) for name, value in curves}


def test_rails_point_evaluator_finds_our_scores(ran: Path, direct: Pdf) -> None:
    ours = {
        "point_bias": metrics.median,
        "point_stats_iqr": metrics.sigma_iqr,
        "point_stats_sigma_mad": metrics.sigma_mad,
        "point_outlier_rate": metrics.outliers_3sigma,
    }
    found = _evaluated(PointToPointEvaluator, ran, list(ours), point_estimate_key="zmedian")
    dz = metrics.delta_z(direct.median(), _few("validation", SOURCES)["redshift"])
    assert {name: float(found[name]) for name in ours} == pytest.approx({n: f(dz) for n, f in ours.items()}, rel=1e-6)


def test_rails_density_evaluator_finds_our_cde_loss_and_pit(ran: Path, direct: Pdf) -> None:
    found = _evaluated(DistToPointEvaluator, ran, ["cdeloss", "pit"])
    truth = _few("validation", SOURCES)["redshift"]
    grid = np.linspace(0, 2.5, 301)  # of RAIL; at exactly 0 qp says no density
    density = direct.density[:, direct.bin_of(grid)]
    hit = density[np.arange(SOURCES), np.abs(grid - truth[:, None]).argmin(axis=1)]
    assert float(found["cdeloss"]) == pytest.approx(np.trapezoid(density**2, grid).mean() - 2 * hit.mean(), rel=1e-4)
    levels = np.linspace(0, 1, len(found["pit"]))
    assert np.abs(found["pit"] - np.quantile(direct.pit(truth), levels)).max() < 0.02


def test_data_in_memory_is_answered_in_one_piece(direct: Pdf) -> None:
    informer = RedshelfKnnInformer.make_stage(name="inform_memory", output_mode="return")
    model = informer.inform({"photometry": _few("training", LABELS)})
    stage = RedshelfKnnEstimator.make_stage(name="estimate_memory", model=model, output_mode="return")
    answer = stage.estimate({"photometry": _few("validation", SOURCES)})()
    assert np.abs(answer.objdata["pdfs"] - direct.density).max() < 1e-9 * direct.density.max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ref_band": "mag_k"}, "ref_band='mag_k'"),
        ({"bands": [*BANDS, "mag_k"]}, "mag_k has none"),
        ({"redshift_col": "z"}, "no column 'z'"),
        ({"zmax": 0.5}, "expected at least the largest labelled redshift"),
        ({"nondetect_val": 98.0, "nonobserved_val": 99.0}, "column 'mag_u_lsst' holds 99.0 in row 3"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused_in_words(options: dict, words: str) -> None:
    table = _few("training", LABELS)
    table["mag_u_lsst"][3] = 99.0
    stage = RedshelfKnnInformer.make_stage(name=f"refused_{words}", output_mode="return", **options)
    with pytest.raises(BadInput, match=words):
        stage.inform({"photometry": table})


def test_a_file_that_holds_no_model_of_ours_is_refused_in_words(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", bank=np.zeros(3))
    with pytest.raises(BadInput, match="expected the model of a RedshelfKnnInformer"):
        ArraysHandle("model", path=str(tmp_path / "other.npz")).read()
