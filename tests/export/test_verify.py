"""verify_<framework>.py as a user runs it: four tampered exports, and classes that load or compute something else.

The frameworks are played by classes with the framework's names, arguments and results, whose features are computed by
`tests.reference.dense_backbones` from the tensors that were loaded into them.
"""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from mwsis.export.folder import export_backbone
from mwsis.export.targets import FRAMEWORKS
from mwsis.export.verify import verify_script
from tests.export.networks import FACTS, LISTINGS, branch, listed
from tests.reference.dense_backbones import DenseBackbone, voxel_encoder

NETWORK_OF = {"openpcdet": "unet_v2", "mmdet3d": "res8x_unet", "det3d": "res8x_unet", "sst": "fsd_unet"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    made = {}
    for network in dict.fromkeys(NETWORK_OF.values()):
        made[network] = tmp_path_factory.mktemp(network)
        export_backbone(branch(network), made[network], FACTS)
    return made


@pytest.fixture
def verify(monkeypatch, capsys):
    """Run the script of a folder in this process; return its exit code and its one line."""

    def run(folder, framework, *options):
        monkeypatch.setattr(sys, "argv", [f"verify_{framework}.py", *options])
        try:
            runpy.run_path(str(folder / f"verify_{framework}.py"), run_name="__main__")
        except SystemExit as stop:
            return (1, stop.code) if isinstance(stop.code, str) else (stop.code, "")  # a sentence is exit code 1
        return 0, capsys.readouterr().out

    return run


@pytest.fixture
def folder(exports, tmp_path):
    """Return a copy of an export that may be changed."""
    return shutil.copytree(exports["unet_v2"], tmp_path / "export")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_untouched_export_passes(exports, verify, framework):
    assert verify(exports[NETWORK_OF[framework]], framework, "--files-only")[0] == 0


def test_the_script_stands_alone(exports, tmp_path):
    """In another process without anything of ours, isolated from this folder."""
    done = subprocess.run(
        [sys.executable, "-I", str(exports["unet_v2"] / "verify_mmdet3d.py"), "--files-only"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok: files of mmdet3d_sparseunet.pth, mmdet3d_sparseencoder.pth\n"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_script_is_for_old_pythons_too(framework):
    text = verify_script(framework)
    ast.parse(text, feature_version=(3, 7))
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("mwsis", "lidar")) for name in imported)
    for newer in ("removeprefix", "removesuffix", "strict=", " | None"):
        assert newer not in text.replace("strict=True)", "")


def tamper(folder, name, change):
    content = torch.load(folder / name, weights_only=True)
    change(next(iter(content.values())))
    torch.save(content, folder / name)


def permute(weights):
    name = "backbone_3d.conv1.0.0.weight"
    weights[name] = weights[name].permute(4, 1, 2, 3, 0).contiguous()


def drop(weights):
    del weights["backbone_3d.conv4.1.1.running_mean"]


def narrow(weights):
    weights["backbone_3d.conv_input.0.weight"] = weights["backbone_3d.conv_input.0.weight"][..., :4].contiguous()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (permute, "backbone_3d.conv1.0.0.weight has other values than were exported, or other axes"),
        (drop, "backbone_3d.conv4.1.1.running_mean is missing"),
        (narrow, "has shape [16, 3, 3, 3, 4], expected [16, 3, 3, 3, 5]; in_channels is 5"),
    ],
)
def test_tampered_weights_are_found(folder, verify, change, sentence):
    tamper(folder, "openpcdet_unetv2.pth", change)
    code, line = verify(folder, "openpcdet", "--files-only")
    assert code == 1
    assert line.endswith(sentence)
    assert "openpcdet_unetv2.pth: " in line
    assert "\n" not in line


class Evil:
    """Runs code where a file is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_old_torch_reads_the_files_too_and_runs_nothing_in_them(folder, verify, monkeypatch, tmp_path):
    load = torch.load

    def old(path, map_location, **options):
        if "weights_only" in options:
            raise TypeError("'weights_only' is an invalid keyword argument")
        return load(path, map_location=map_location, weights_only=False, **options)

    monkeypatch.setattr(torch, "load", old)
    assert verify(folder, "openpcdet", "--files-only")[0] == 0
    trace = tmp_path / "trace"
    torch.save({"model_state": {}, "hook": Evil(trace)}, folder / "openpcdet_unetv2.pth")
    code, line = verify(folder, "openpcdet", "--files-only")
    assert code == 1
    assert "openpcdet_unetv2.pth cannot be read (it holds " in line
    assert not trace.exists()


def test_a_stale_manifest_is_found(folder, verify):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    code, line = verify(folder, "openpcdet", "--files-only")
    assert code == 1
    assert "openpcdet_unetv2.pth is not the file that the manifest was written for; export again" in line


@pytest.mark.parametrize("name", ["parity.npz", "backbone.safetensors", "openpcdet_unetv2.pth", "manifest.json"])
def test_missing_and_foreign_files_are_found(folder, verify, name):
    (folder / name).write_bytes(b"something else")
    code, line = verify(folder, "openpcdet", "--files-only")
    assert (code, name in line) == (1, True)
    (folder / name).unlink()
    code, line = verify(folder, "openpcdet", "--files-only")
    assert (code, name in line) == (1, True)


def test_an_environment_without_the_framework_is_said(folder, verify):
    code, line = verify(folder, "openpcdet")
    assert code == 1
    assert "openpcdet cannot be imported here (No module named 'pcdet'); try --files-only" in line


class Played(nn.Module):
    """A class with the keys of a listing; what it computes comes from what was loaded into it."""

    def __init__(self, listing, in_channels=5, broken=None):
        super().__init__()
        self.listing, self.broken = listing, broken
        file_name = next(name for name, of in LISTINGS.items() if of == listing)
        for key, shape in listed(file_name).items():
            size = (*shape[:4], in_channels) if key == "conv_input.0.weight" and len(shape) == 5 else shape
            count = key.endswith("num_batches_tracked")
            place(self, key, torch.tensor(0) if count else torch.randn(size))

    def features(self, voxel_features, voxel_coords, shape, num_frames):
        dense = DenseBackbone(self.listing, self.state_dict(), "KRSC")
        found = dense(voxel_features, voxel_coords, [int(cells) for cells in shape], num_frames)
        return {key: 1.01 * tensor if self.broken == "features" else tensor for key, tensor in found.items()}


def place(module, key, tensor):
    name, _, rest = key.partition(".")
    if not rest:
        module.register_buffer(name, tensor)
        return
    if not hasattr(module, name):
        module.add_module(name, nn.Module())
    place(getattr(module, name), rest, tensor)


def play_openpcdet(monkeypatch, broken=None):
    def class_of(listing):
        class Backbone(Played):
            def __init__(self, model_cfg, input_channels, grid_size, voxel_size, point_cloud_range):
                assert model_cfg.get("USE_BIAS", None) is None
                super().__init__(listing, input_channels, broken)
                self.sparse_shape = grid_size[::-1] + np.array([1, 0, 0])
                if broken == "class":
                    place(self, "conv9.0.weight", torch.zeros(1))

            def forward(self, batch):
                voxels = (batch["voxel_features"], batch["voxel_coords"], self.sparse_shape, batch["batch_size"])
                found = self.features(*voxels)
                batch["encoded_spconv_tensor"] = Encoded(found["bev"])
                if "unet" in found:
                    batch["point_features"] = found["unet"]
                return batch

        return Backbone

    class Encoded:
        def __init__(self, bev):
            self.bev = bev

        def dense(self):
            return self.bev.unflatten(1, (128, -1))

    class Detector3DTemplate(nn.Module):
        def load_params_from_file(self, filename, logger, to_cpu=False):
            state, own = torch.load(filename, map_location="cpu")["model_state"], self.state_dict()
            fitting = {key: state[key] for key in state if key in own and own[key].shape == state[key].shape}
            if broken == "loader":
                del fitting["backbone_3d.conv3.1.0.weight"]
            self.load_state_dict({**own, **fitting})

    backbones = {listing.removeprefix("pcdet_"): class_of(listing) for listing in LISTINGS.values()}
    put(monkeypatch, "pcdet.models.backbones_3d", __all__=backbones)
    put(monkeypatch, "pcdet.models.detectors.detector3d_template", Detector3DTemplate=Detector3DTemplate)


def put(monkeypatch, name, **content):
    """Make a module importable, with the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        if end > 1:
            monkeypatch.setattr(
                sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[path], raising=False
            )
    for key, value in content.items():
        setattr(sys.modules[name], key, value)


def strict(model, path, map_location, strict):
    """mmcv's, mmengine's and det3d's ``load_checkpoint``, with either layout."""
    assert strict
    load(model, torch.load(path, map_location=map_location)["state_dict"])


def load(model, state):
    own = model.state_dict()
    turned = {k: w if w.shape == own[k].shape else w.permute(4, 0, 1, 2, 3) for k, w in state.items()}
    model.load_state_dict(turned, strict=True)


@pytest.mark.slow
def test_openpcdet_is_checked_with_its_class_and_loader(exports, verify, monkeypatch):
    play_openpcdet(monkeypatch)
    code, line = verify(exports["unet_v2"], "openpcdet")
    assert (code, line) == (
        0,
        "ok: files, loading and features of openpcdet_unetv2.pth, openpcdet_voxelbackbone8x.pth\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("loader", "backbone_3d.conv3.1.0.weight was not loaded: the class holds other values"),
        ("class", "backbone_3d.conv9.0.weight is in the class and not in the file"),
        ("features", "bev of set 0 differs by up to"),
    ],
)
def test_a_silent_failure_of_the_framework_is_found(exports, verify, monkeypatch, broken, sentence):
    play_openpcdet(monkeypatch, broken)
    code, line = verify(exports["unet_v2"], "openpcdet")
    assert code == 1
    assert sentence in line


@pytest.mark.slow
def test_mmdet3d_is_checked_in_both_of_its_ways(exports, verify, monkeypatch):
    used = []

    class SparseEncoder(Played):
        def __init__(self, in_channels, sparse_shape, block_type, encoder_channels, encoder_paddings):
            assert block_type == "basicblock"
            super().__init__("mmdet3d_SparseEncoder_centerpoint", in_channels)
            self.shape = sparse_shape

        def forward(self, voxel_features, coors, batch_size):
            return self.features(voxel_features, coors, self.shape, batch_size)["bev"]

    class PretrainedInit:
        def __init__(self, checkpoint, prefix, map_location):
            self.state, self.prefix = torch.load(checkpoint)["state_dict"], prefix

        def __call__(self, module):
            used.append(self.prefix)
            load(module, {key.removeprefix(self.prefix): self.state[key] for key in self.state})

    put(monkeypatch, "mmdet3d.models.middle_encoders", SparseEncoder=SparseEncoder)
    put(monkeypatch, "mmengine.runner", load_checkpoint=strict)
    put(monkeypatch, "mmengine.model", PretrainedInit=PretrainedInit)
    assert verify(exports["res8x_unet"], "mmdet3d")[0] == 0
    assert used == ["pts_middle_encoder."]


@pytest.mark.slow
def test_det3d_is_checked(exports, verify, monkeypatch):
    class SpMiddleResNetFHD(Played):
        def __init__(self, num_input_features):
            super().__init__("det3d_SpMiddleResNetFHD", num_input_features)

        def forward(self, voxel_features, coors, batch_size, input_shape):
            shape = np.array(input_shape[::-1]) + np.array([1, 0, 0])
            return self.features(voxel_features, coors, shape, batch_size)["bev"], {}

    put(monkeypatch, "det3d.models.backbones.scn", SpMiddleResNetFHD=SpMiddleResNetFHD)
    put(monkeypatch, "det3d.torchie.trainer.checkpoint", load_checkpoint=strict)
    assert verify(exports["res8x_unet"], "det3d")[0] == 0


@pytest.mark.slow
def test_sst_is_checked_with_its_voxel_encoder(exports, verify, monkeypatch):
    class SimpleSparseUNet(Played):
        def __init__(self, sparse_shape, in_channels, **settings):
            super().__init__("sst_SimpleSparseUNet", in_channels)
            self.shape = sparse_shape

        def forward(self, voxels):
            features = self.features(voxels["voxel_feats"], voxels["voxel_coors"], self.shape, 2)["unet"]
            return [{"voxel_feats": features}]

    class DynamicScatterVFE(nn.Module):
        def __init__(self, voxel_size, point_cloud_range, **settings):
            super().__init__()
            self.grid = {"voxel_size": torch.tensor(voxel_size), "point_cloud_range": torch.tensor(point_cloud_range)}
            self.vfe_layers = nn.ModuleList(nn.Module() for _ in range(2))
            for layer, width in zip(self.vfe_layers, (11, 128)):
                layer.linear = nn.Linear(width, 64, bias=False)
                layer.norm = nn.BatchNorm1d(64)

        def forward(self, points, coords):
            voxels = coords.unique(dim=0).flip(0)
            arrays = {"points": points, "point_coords": coords, **self.grid}
            return voxel_encoder(self.state_dict(), arrays, voxels), voxels

    put(monkeypatch, "mmdet3d.models.middle_encoders.sparse_unet", SimpleSparseUNet=SimpleSparseUNet)
    put(monkeypatch, "mmdet3d.models.voxel_encoders.voxel_encoder", DynamicScatterVFE=DynamicScatterVFE)
    put(monkeypatch, "mmcv.runner", load_checkpoint=strict)
    assert verify(exports["fsd_unet"], "sst")[0] == 0
