"""Model files by people who mean harm: nothing in them runs, each is refused in a few clear words.

Every file goes through the command line, as a user would open it. What would run if it were
unpickled makes a folder; whoever connects to anything, or asks for gigabytes, is caught.
"""

import io
import json
import os
import pickle
import resource
import shutil
import socket
import struct
import zipfile

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

import finetune.commands.train
from finetune.cli import main
from finetune.exports.bundle import sha256_of

MAX_MEGABYTES = 500
"""That the refusal of a file may take."""


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


class EvilByEval(Evil):
    """The same, in one line of Python."""

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.canary!r})",)


class Place:
    """Where a hostile file is made, and of what."""

    def __init__(self, folder, canary, bundle, onnx_file, script, config, images):
        self.folder = folder
        self.canary = canary
        self.bundle = bundle
        self.onnx_file = onnx_file
        self.script = script
        self.config = config
        self.images = images
        self.record = {"data": str(images), "class_names": ["lying", "standing"], "seed": 0}
        self.split = "path,label,split\n"
        for label in ("lying", "standing"):
            for index in range(40):
                split = "val" if index < 8 else "train"
                self.split += f"{label}/{index:03d}.png,{label},{split}\n"


# Each kind of file: how it is written, and what the user types.


def predict(path, *words):
    return ["predict", f"run={path}", *words]


def described(change, *, rehash=True):
    """Make a bundle whose ``model.json`` is changed by a function, or replaced by a text."""

    def make(place):
        folder = shutil.copytree(place.bundle, place.folder / "bundle")
        if isinstance(change, str):
            (folder / "model.json").write_text(change)
            return predict(folder)
        values = json.loads((folder / "model.json").read_text())
        change(values)
        if rehash:
            values["weights_sha256"] = sha256_of(folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps(values))
        return predict(folder)

    return make


def put(path, value):
    """Make a bundle with a value at a dotted path of ``model.json``."""

    def change(values):
        *parents, last = path.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    return described(change)


def weighed(content):
    """Make a bundle whose weights are what a function of the real ones gives; checksum right."""

    def make(place):
        folder = shutil.copytree(place.bundle, place.folder / "bundle")
        weights = folder / "model.safetensors"
        weights.write_bytes(content(weights.read_bytes(), place))
        values = json.loads((folder / "model.json").read_text())
        values["weights_sha256"] = sha256_of(weights)
        (folder / "model.json").write_text(json.dumps(values))
        return predict(folder)

    return make


def pickled(evil, *, legacy=False, bare=False):
    """Give a file of ``torch.save``, or a bare pickle, that holds something to run."""

    def content(place):
        values = {"state_dict": {"conv1.weight": torch.ones(2)}, "more": evil(place.canary)}
        if bare:
            return pickle.dumps(values)
        file = io.BytesIO()
        torch.save(values, file, _use_new_zipfile_serialization=not legacy)
        return file.getvalue()

    return content


def as_weights(name, content):
    def make(place):
        path = place.folder / name
        path.write_bytes(content(place))
        words = ["model=nano", "model.image_size_px=32", f"dataset.root={place.images}"]
        return ["train", *words, f"runs={place.folder}", f"model.weights={path}"]

    return make


def as_checkpoint(content):
    def make(place):
        run = place.folder / "run"
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(place.config)
        (run / "run.json").write_text(json.dumps(place.record))
        (run / "split.csv").write_text(place.split)
        (run / "checkpoints" / "last.ckpt").write_bytes(content(place))
        return ["train", f"resume={run}"]

    return make


def as_export(name, content, *words):
    def make(place):
        path = place.folder / name
        path.write_bytes(content(place))
        return predict(path, *words)

    return make


def of_onnx(change):
    """Make an ONNX file that is changed by a function."""

    def content(place):
        proto = onnx.load(str(place.onnx_file))
        change(proto)
        return proto.SerializeToString()

    return as_export("model.onnx", content)


def outside(proto):
    """Take the first weights from a file that lies elsewhere."""
    tensor = next(t for t in proto.graph.initializer if len(t.raw_data) > 1000)
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/passwd"), ("offset", "0"), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def unknown_operator(proto):
    proto.graph.node[0].domain = "com.evil"
    proto.graph.node[0].op_type = "System"


def giant_tensor(proto):
    """Answer with 2^40 numbers."""
    size = helper.make_tensor("giant", TensorProto.INT64, [1], [2**40])
    proto.graph.initializer.append(size)
    for node in proto.graph.node:
        node.output[:] = ["kept" if name == "probabilities" else name for name in node.output]
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["giant"], ["probabilities"]))


def renamed_onnx(key, value):
    def change(proto):
        (entry,) = proto.metadata_props
        entry.value = json.dumps({**json.loads(entry.value), key: value})

    return of_onnx(change)


def of_layout(change):
    """Make a file in timm's layout whose header is changed by a function of its description."""

    def make(place):
        path = place.folder / "model.safetensors"
        values = json.loads((place.bundle / "model.json").read_text())
        change(values, place)
        header = {"layout": "timm", "with_head": "true", "model.json": json.dumps(values)}
        save_file({"fc.weight": torch.ones(2, 3)}, path, metadata=header)
        return predict(path)

    return make


def put_name(values, name):
    values["backbone"]["name"] = name


def of_backbone(name):
    return of_layout(
        lambda values, place: values["backbone"].update(name=name.format(place.folder))
    )


def header_of(length, text=b"{}"):
    return lambda *_: struct.pack("<Q", length) + text


def zip_with(name):
    """Give an archive whose only file wants to lie elsewhere."""

    def content(place):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, pickle.dumps(Evil(place.canary)))
        return file.getvalue()

    return content


def loop(place):
    folder = place.folder / "bundle"
    folder.mkdir()
    (folder / "model.json").symlink_to("model.json")
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    return predict(folder)


def loop_of_runs(place):
    (place.folder / "latest").symlink_to("last")
    (place.folder / "last").symlink_to("latest")
    return ["export", f"run={place.folder / 'latest'}"]


def device(place):
    folder = shutil.copytree(place.bundle, place.folder / "bundle")
    (folder / "model.json").unlink()
    (folder / "model.json").symlink_to("/dev/zero")
    return predict(folder)


def typed(*words):
    return lambda place: [*words]


NESTED = '{"a":' * 100_000
GIANT_HEADER = 2**60

HOSTILE = {
    # Pickles.
    "pickle in .ckpt": as_checkpoint(pickled(Evil)),
    "eval in .ckpt": as_checkpoint(pickled(EvilByEval)),
    "legacy pickle in .ckpt": as_checkpoint(pickled(Evil, legacy=True)),
    "bare pickle in .ckpt": as_checkpoint(pickled(Evil, bare=True)),
    "zip with a path in .ckpt": as_checkpoint(zip_with("../../data.pkl")),
    "garbage in .ckpt": as_checkpoint(lambda place: b"\x80\x04garbage"),
    "pickle in .pth": as_weights("model.pth", pickled(Evil)),
    "eval in .pth": as_weights("model.pth", pickled(EvilByEval)),
    "legacy pickle in .pt": as_weights("model.pt", pickled(Evil, legacy=True)),
    "bare pickle in .bin": as_weights("model.bin", pickled(Evil, bare=True)),
    "pickle in .ckpt as weights": as_weights("model.ckpt", pickled(Evil)),
    "pickle called .safetensors as weights": as_weights("w.safetensors", pickled(Evil)),
    "TorchScript as weights": as_weights("model.pt", lambda place: place.script),
    "pickle in a bundle": weighed(lambda _, place: pickled(Evil)(place)),
    "pickle called .safetensors": as_export("model.safetensors", pickled(Evil)),
    "pickle called .onnx": as_export("model.onnx", pickled(Evil)),
    # Programs.
    "TorchScript": as_export("model.ts", lambda place: place.script),
    "pickle called .ts": as_export("model.ts", pickled(Evil)),
    "pickle called .pt2": as_export("model.pt2", pickled(Evil)),
    "bare pickle called .pt2": as_export("model.pt2", pickled(Evil, bare=True)),
    "pickle called .ts, trusted": as_export("model.ts", pickled(Evil), "trust=true"),
    # Instructions in a description.
    "_target_ at the top": put("_target_", "os.system"),
    "_target_ in preprocessing": put("preprocessing._target_", "os.system"),
    "_target_ in head": put("head._target_", "os.system"),
    "_target_ in the head's arguments": put("head.arguments._target_", "os.system"),
    "_target_ for a number": put("head.arguments.dropout", {"_target_": "os.system"}),
    "_target_ in ONNX": renamed_onnx("_target_", "os.system"),
    # Names that are addresses.
    "hub in a bundle": put("backbone.name", "hf-hub:evil/model"),
    "folder in a bundle": put("backbone.name", "local-dir:/etc"),
    "path in a bundle": put("backbone.name", "../../etc/passwd"),
    "path as a tag": put("backbone.name", "resnet18.../../x"),
    "URL in a bundle": put("backbone.name", "https://evil.example/model.pth"),
    "hub in a layout": of_backbone("hf-hub:evil/model"),
    "old hub in a layout": of_backbone("hf_hub:evil/model"),
    "folder in a layout": of_backbone("local-dir:{}"),
    "absolute path in a layout": of_backbone("{}"),
    "_target_ in a layout": of_layout(lambda values, _: values.update(_target_="os.system")),
    "URL as a run": typed("predict", "run=https://evil.example/run"),
    "URL as an exported file": typed("predict", "run=https://evil.example/model.onnx"),
    "URL as a run to export": typed("export", "run=https://evil.example/run"),
    "URL as weights": typed("train", "model=nano", "model.weights=https://evil.example/w.pth"),
    "URL to go on with": typed("train", "resume=https://evil.example/run"),
    # Lies about size.
    "wrong checksum": described(lambda v: v.update(weights_sha256="0" * 64), rehash=False),
    "truncated weights": weighed(lambda data, _: data[: len(data) // 2]),
    "empty weights": weighed(lambda *_: b""),
    "giant header": weighed(header_of(GIANT_HEADER)),
    "giant header of a layout": as_export("model.safetensors", header_of(GIANT_HEADER)),
    "giant header of weights": as_weights("w.safetensors", header_of(GIANT_HEADER)),
    "nested header": weighed(lambda *_: header_of(len(NESTED), NESTED.encode())()),
    "giant image": put("preprocessing.image_size_px", 10**9),
    "giant backbone": put("backbone.image_size_px", 10**6),
    "giant resize": put("preprocessing.crop_fraction", 1e-7),
    "giant hidden layer": described(
        lambda v: v.update(head={"name": "mlp", "arguments": {"hidden_features": 10**9}})
    ),
    "many classes": put("class_names", [str(index) for index in range(10**6)]),
    "more classes than weights": put("class_names", [str(index) for index in range(90_000)]),
    "giant answer of ONNX": of_onnx(giant_tensor),
    # Broken JSON.
    "nested JSON": described(NESTED),
    "nested lists": described("[" * 100_000),
    "NaN in JSON": put("temperature", float("nan")),
    "infinity in JSON": put("preprocessing.mean", [float("inf")] * 2),
    "a long number": described('{"format_version": ' + "9" * 10_000 + "}"),
    "text for a description": described("import os"),
    # ONNX.
    "ONNX with weights elsewhere": of_onnx(outside),
    "ONNX with an unknown operator": of_onnx(unknown_operator),
    "garbage called .onnx": as_export("model.onnx", lambda place: b"garbage" * 100),
    "empty .onnx": as_export("model.onnx", lambda place: b""),
    # Links.
    "links in a circle": loop,
    "runs in a circle": loop_of_runs,
    "a device for a description": device,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory, stripes):
    """Give the settings of a training, as a run directory has them."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.commands.train, "run", lambda _, text: found.append(text))
        folder = tmp_path_factory.mktemp("settings")
        words = [f"dataset.root={stripes}", f"runs={folder}", "model=nano", "trainer=cpu"]
        words += ["model.pretrained=false"]
        words += ["trainer.batch_size=16", "trainer.epochs=3", "optimizer.lr=3e-3"]
        assert main(["train", *words]) == 0
    return found[0]


@pytest.fixture(scope="module")
def script(export_of):
    return export_of(".ts")[1].read_bytes()


@pytest.fixture
def place(tmp_path, bundle_of, export_of, script, config, stripes):
    folder = tmp_path / "hostile"
    folder.mkdir()
    bundle, (_, onnx_file) = bundle_of("multiclass"), export_of(".onnx")
    return Place(folder, tmp_path / "canary", bundle, onnx_file, script, config, stripes)


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """Record whom anybody wants to talk to."""
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked


def megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_there_are_at_least_40():
    print(f"{len(HOSTILE)} hostile files")
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("evil", [Evil, EvilByEval])
def test_what_is_dangerous_is_dangerous(tmp_path, evil):
    pickle.loads(pickle.dumps(evil(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()


# Those that could be unpickled also where torch is told to unpickle everything.
PICKLES = [name for name in HOSTILE if "pickle" in name or "eval" in name]


@pytest.mark.parametrize(
    ("name", "forced"),
    [*((name, False) for name in HOSTILE), *((name, True) for name in PICKLES)],
)
def test_nothing_runs_and_the_user_is_told(
    place, photos, connections, monkeypatch, capsys, name, forced
):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    words = HOSTILE[name](place)
    if words[0] == "predict":
        words += [f"input={photos[0]}", f"output={place.folder / 'labels.csv'}", "workers=0"]
    before = megabytes()
    status = main(words)
    message = capsys.readouterr().err
    assert not place.canary.exists()
    assert connections == []
    assert status == 2, message
    assert message.startswith(("ModelError: ", "RunError: ", "ConfigError: ")), message
    assert "Traceback" not in message
    assert len(message) < 1000
    assert message.count("\n") <= 6
    assert not (place.folder / "labels.csv").exists()
    assert megabytes() - before < MAX_MEGABYTES
