"""The tools that are compared: ours and its peers, each as a whole process on the same images.

Imports nothing large: the peak memory of a process that is started counts from that of its parent.
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from processes import Finished, run_process

OURS = {
    "finetune, freeze=backbone": ["freeze=backbone"],
    "finetune": [],
}
"""Options of ours beside the images and the weights."""
PEERS = {
    "PyTorch tutorial, batch 4": ["pytorch_tutorial.py", "--batch-size", "4"],
    "PyTorch tutorial, batch 32": ["pytorch_tutorial.py", "--batch-size", "32"],
    "fastai fine_tune": ["fastai_fine_tune.py"],
    "timm train.py": ["timm_train.py"],
    "Hugging Face Trainer": ["hf_trainer.py"],
}
ULTRALYTICS = "Ultralytics classify"
"""By its command line alone, since its licence is AGPL; it does not tell balanced accuracy."""
TOOLS = (*OURS, *PEERS, ULTRALYTICS)

SCRIPTS = Path(__file__).with_name("peers").resolve()
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "YOLO_OFFLINE": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TQDM_DISABLE": "1",
}


@dataclass(frozen=True)
class Record:
    """One training by one tool.

    Attributes:
        tool: which.
        folder: name of the images' folder.
        seed: of the training, and of the split where the folder has none.
        epochs: asked of peers; None for what ours chooses.
        machine: where and when.
        seconds: of the whole process.
        peak_mib: of its largest process.
        accuracy: on the validation images, of the epoch that the tool keeps; 0..1.
        balanced_accuracy: likewise; None where the tool does not tell.
        rows: each validation: ``accuracy``, ``balanced_accuracy`` and ``seconds`` since the start.
    """

    tool: str
    folder: str
    seed: int
    epochs: int | None
    machine: str
    seconds: float
    peak_mib: float
    accuracy: float
    balanced_accuracy: float | None
    rows: list[dict[str, Any]]

    @property
    def key(self) -> tuple[str, str, int]:
        """What is measured once."""
        return self.tool, self.folder, self.seed


class Bench:
    """A temporary folder with everything that the tools need.

    Args:
        weights: safetensors of a resnet18.
        peers_python: of the environment in which the peers are installed.
        epochs: of the peers.
        options: further ``name=value`` for ours.
        machine: put into the records.
    """

    def __init__(
        self,
        weights: Path,
        peers_python: Path,
        *,
        epochs: int,
        options: Sequence[str],
        machine: str,
    ) -> None:
        self.weights = weights.resolve()
        # Not resolved: the link is how Python knows its environment.
        self.peers_python = Path(os.path.abspath(peers_python))  # noqa: PTH100
        self.epochs = epochs
        self.options = list(options)
        self.machine = machine
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-bench-"))
        self.converted = self.folder / "weights"
        self._warm: set[str] = set()

    def close(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder)

    def run(self, tool: str, images: Path, seed: int) -> Record:
        """Train once with a tool. Ours comes first: it decides about the split.

        Raises:
            RuntimeError: the tool failed; with the end of what it printed.
        """
        work = Path(tempfile.mkdtemp(dir=self.folder))
        read_all(images)
        if tool in OURS:
            return self._run_ours(tool, images.resolve(), seed, work)
        split = self.split_of(images, seed)
        if not self.converted.is_dir():
            script = SCRIPTS / "convert_weights.py"
            self._start([self.peers_python, script, self.weights, self.converted], work)
        if tool == ULTRALYTICS:
            return self._run_ultralytics(images, split, seed, work)
        script, *words = PEERS[tool]
        command = [self.peers_python, SCRIPTS / script]
        if script not in self._warm:  # compiled and in the page cache, as ours is
            self._start([*command, "--help"], work)
            self._warm.add(script)
        common = ["--weights", self.converted, "--epochs", self.epochs, "--seed", seed]
        done, log = self._start([*command, split, *words, *common], work)
        lines = log.read_text(errors="replace").splitlines()
        said = json.loads(next(line for line in reversed(lines) if line.startswith('{"accuracy"')))
        return self._record(tool, images, seed, done, said)

    def split_of(self, images: Path, seed: int) -> Path:
        """Give train/ and val/ with links to the images, divided as ours divides them."""
        folder = self.folder / f"split-{images.name}-{seed}"
        table = self.folder / f"{images.name}-{seed}.csv"
        if not table.is_file():  # a quick training that is thrown away
            quick = ["model=nano", "model.image_size_px=32", "trainer.epochs=1", "freeze=backbone"]
            work = Path(tempfile.mkdtemp(dir=self.folder))
            self._train(images.resolve(), seed, work, [*quick, *self.options], weights=None)
            shutil.copy(work / "runs" / "latest" / "split.csv", table)
        if not folder.is_dir():
            link_images(images.resolve(), table, folder)
        return folder

    def _run_ours(self, tool: str, images: Path, seed: int, work: Path) -> Record:
        if "finetune" not in self._warm:
            self._start([sys.executable, "-c", "import finetune.commands.train"], work)
            self._warm.add("finetune")
        words = [*OURS[tool], *self.options]
        done = self._train(images, seed, work, words, weights=self.weights)
        run = work / "runs" / "latest"
        shutil.copy(run / "split.csv", self.folder / f"{images.name}-{seed}.csv")
        kept = json.loads((run / "metrics.json").read_text())["val"]
        rows = [
            {"accuracy": _number(row, "val_accuracy"), "seconds": seconds}
            | {"balanced_accuracy": _number(row, "val_balanced_accuracy")}
            for row, seconds in zip(_rows(run / "metrics.csv"), done.rows_seconds, strict=False)
        ]
        # What the process says at its end, by its last act.
        rows.append({name: kept[name] for name in ("accuracy", "balanced_accuracy")})
        rows[-1]["seconds"] = done.seconds
        return self._record(tool, images, seed, done, {**kept, "rows": rows})

    def _train(
        self, images: Path, seed: int, work: Path, words: list[str], *, weights: Path | None
    ) -> Finished:
        runs = work / "runs"
        command: list[Any] = [sys.executable, "-m", "finetune", "train", f"dataset.root={images}"]
        command += [] if weights is None else [f"model.weights={weights}"]
        command += [f"seed={seed}", f"runs={runs}", f"cache_folder={work / 'cache'}", *words]

        def count_rows() -> int:
            tables = list(runs.glob("*/*/metrics.csv"))
            return len(_rows(tables[0])) if tables else 0

        return self._start(command, work, count_rows=count_rows)[0]

    def _run_ultralytics(self, images: Path, split: Path, seed: int, work: Path) -> Record:
        program = self.peers_python.with_name("yolo")
        if ULTRALYTICS not in self._warm:
            self._start([program, "checks"], work)
            self._warm.add(ULTRALYTICS)
        words = ["model=yolo11-cls-resnet18.yaml", f"data={split}", f"epochs={self.epochs}"]
        words += ["imgsz=224", "batch=32", f"seed={seed}", f"project={work}", "name=run"]
        table = work / "run" / "results.csv"

        def count_rows() -> int:
            return len(_rows(table)) if table.is_file() else 0

        command = [program, "classify", "train", *words, "plots=False"]
        done, _ = self._start(command, work, count_rows=count_rows)
        rows = [
            {"accuracy": float(row["metrics/accuracy_top1"]), "seconds": seconds}
            | {"balanced_accuracy": None}
            for row, seconds in zip(_rows(table), done.rows_seconds, strict=True)
        ]
        best = max(rows, key=lambda row: row["accuracy"])
        return self._record(ULTRALYTICS, images, seed, done, {**best, "rows": rows})

    def _start(self, command: list[Any], work: Path, **watch: Any) -> tuple[Finished, Path]:
        log = work / "output.log"
        environment = {
            **OFFLINE,
            "TORCH_HOME": str(self.converted),
            "HF_HOME": str(self.folder / "huggingface"),
            "YOLO_CONFIG_DIR": str(self.folder / "ultralytics"),
        }
        done = run_process(command, folder=work, log=log, environment=environment, **watch)
        if done.status:
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"status {done.status} of {' '.join(map(str, command))}\n{end}")
        return done, log

    def _record(
        self, tool: str, images: Path, seed: int, done: Finished, said: dict[str, Any]
    ) -> Record:
        return Record(
            tool=tool,
            folder=images.name,
            seed=seed,
            epochs=None if tool in OURS else self.epochs,
            machine=self.machine,
            seconds=done.seconds,
            peak_mib=done.peak_mib,
            accuracy=said["accuracy"],
            balanced_accuracy=said["balanced_accuracy"],
            rows=said["rows"],
        )


def link_images(root: Path, table: Path, folder: Path) -> None:
    """Make ``folder/<split>/<class>/`` of links to the images of a ``split.csv``."""
    for row in _rows(table):
        target = folder / row["split"] / row["label"] / row["path"].replace("/", "_")
        if row["split"] in ("train", "val"):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root / row["path"])


def read_all(images: Path) -> None:
    """Bring the images into the page cache, so that none of the tools pays for the disk."""
    for path in images.rglob("*"):
        if path.is_file():
            path.read_bytes()


def read_records(path: Path) -> dict[tuple[str, str, int], Record]:
    """Read what was measured before, the latest of each."""
    if not path.is_file():
        return {}
    records = [Record(**json.loads(line)) for line in path.read_text().splitlines()]
    return {record.key: record for record in records}


def append_record(path: Path, record: Record) -> None:
    """Keep a record for the tables to come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        return [{key.strip(): value for key, value in row.items()} for row in rows]


def _number(row: dict[str, str], name: str) -> float | None:
    return float(row[name]) if row.get(name) else None
