"""Checkpoints of foundation models: what is read, and what is refused by name."""

import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoints import config_of, safetensors, weights_of, write_checkpoint

from bach.core.errors import InputError
from bach.network.checkpoints import POSITIONS, is_checkpoint, open_checkpoint, resize_positions

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "swiglu", "swiglu")


def _change(folder, **changes):
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value != "gone"}))


def test_a_backbone_with_a_slash_is_a_checkpoint():
    assert is_checkpoint("hf://owkin/phikon-v2")
    assert is_checkpoint("./midnight")
    assert not is_checkpoint("InceptionResNetV2")
    assert not is_checkpoint("small")


def test_a_checkpoint_says_how_pictures_are_scaled(folder, tmp_path):
    found = open_checkpoint(str(folder))
    assert np.allclose(found.scale, 1 / 127.5)
    assert np.allclose(found.offset, -1)
    assert (found.patch_size, found.registers) == (14, 0)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert np.allclose(open_checkpoint(str(folder)).scale, 1 / 255)
    (folder / "preprocessor_config.json").write_text(
        '{"do_rescale": false, "image_mean": 127.5, "image_std": [2, 4, 8]}'
    )
    found = open_checkpoint(str(folder))
    assert np.allclose(found.scale, [0.5, 0.25, 0.125])
    assert np.allclose(found.offset, [-63.75, -31.875, -15.9375])


@pytest.mark.parametrize(("dtype", "error"), [("F32", 0), ("F16", 1e-3), ("BF16", 8e-3)])
def test_weights_are_read_in_whatever_format_and_under_whatever_prefix(tmp_path, dtype, error):
    folder = write_checkpoint(tmp_path, "registers", "dinov2_with_registers.", dtype)
    found = open_checkpoint(str(folder))
    for name, values in weights_of(config_of("registers")).items():
        read = found.read(name)
        assert read.dtype == np.float32
        assert np.allclose(read, values, rtol=error, atol=1e-6)


def test_weights_in_several_files_are_those_of_one(folder):
    weights = weights_of(config_of("swiglu"))
    names = list(weights)
    parts = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    for file, some in parts.items():
        (folder / file).write_bytes(safetensors({name: weights[name] for name in some}))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, some in parts.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = open_checkpoint(str(folder))
    assert all((found.read(name) == values).all() for name, values in weights.items())
    for bad in ({"a": "../elsewhere.safetensors"}, {"a": 3}, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(InputError, match=r"index.json must name the files"):
            open_checkpoint(str(folder))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [3, 8, 13])
def test_resized_positions_keep_what_is_constant_and_what_is_symmetric(grid, antialias):
    same = np.full((1, 65, 2), 0.7, np.float32)
    assert np.allclose(resize_positions(same, grid, antialias), 0.7)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((8, 8, 2)).astype(np.float32)

    def resized(tokens):
        positions = np.concatenate([np.zeros((1, 2), np.float32), tokens.reshape(64, 2)])[None]
        return resize_positions(positions, grid, antialias)[0, 1:].reshape(grid, grid, 2)

    assert np.allclose(resized(tokens[::-1]), resized(tokens)[::-1], atol=1e-6)
    assert np.allclose(resized(tokens.swapaxes(0, 1)), resized(tokens).swapaxes(0, 1), atol=1e-6)
    if grid == 8:
        assert np.allclose(resized(tokens), tokens)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    for name, said in (
        ("absent", "no folder"),
        ("empty", "empty"),
        ("photos", "a folder of n1.tif"),
    ):
        if name != "absent":
            (tmp_path / name).mkdir()
        if name == "photos":
            (tmp_path / name / "n1.tif").write_bytes(b"")
        with pytest.raises(InputError, match=rf"must be a folder with config.json[\s\S]*{said}"):
            open_checkpoint(str(tmp_path / name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "swin"}, "known architecture.*\nReceived: .*of 'swin'"),
        ({"model_type": "gone", "architecture": "vit_giant_patch14_reg4_dinov2"}, "of 'vit_giant"),
        ({"model_type": ["vit"]}, "known architecture"),
        ({"patch_size": "gone"}, "must give patch_size"),
        ({"hidden_size": 10**9}, "must give hidden_size, a whole number from 1 to"),
        ({"num_hidden_layers": True}, "must give num_hidden_layers"),
        ({"hidden_act": "relu"}, "with gelu"),
        ({"num_attention_heads": 5}, "its heads divide"),
    ],
)
def test_a_config_of_something_else_is_refused(folder, changes, said):
    _change(folder, **changes)
    with pytest.raises(InputError, match=said):
        open_checkpoint(str(folder))


def test_a_checkpoint_that_does_not_say_how_pictures_are_scaled_is_refused(folder):
    file = folder / "preprocessor_config.json"
    for text in (
        "{}",
        "[]",
        '{"image_mean": [1, 2], "image_std": 1}',
        '{"image_mean": 0, "image_std": 0}',
    ):
        file.write_text(text)
        with np.errstate(all="ignore"), pytest.raises(InputError, match="must give image_mean"):
            open_checkpoint(str(folder))
    file.unlink()
    with pytest.raises(InputError, match=r"preprocessor_config.json must[\s\S]*nobody knows"):
        open_checkpoint(str(folder))


def test_damaged_weights_are_refused_by_name_or_read(folder):
    rng = np.random.default_rng(0)
    file = folder / "model.safetensors"
    whole, said = file.read_bytes(), []
    header = 8 + int.from_bytes(whole[:8], "little")
    for trial in range(60):
        content = bytearray(whole)
        place = int(rng.integers(header))
        if trial % 3 == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            del content[int(rng.integers(len(content))) :]
        else:
            content[place : place + 4] = rng.bytes(4)
        file.write_bytes(content)
        try:
            found = open_checkpoint(str(folder))
            for name in found.tensors:
                found.read(name)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all(str(folder) in text and "\nReceived: " in text for text in said)


def test_weights_that_are_said_to_be_elsewhere_or_larger_are_not_read(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for change in (
        {"data_offsets": [0, 10**12], "shape": [10**12 // 4]},
        {"data_offsets": [-8, 0], "shape": [2]},
        {"shape": [3]},
        {"dtype": "F8_E4M3"},
        {"shape": [0.5], "data_offsets": [0, 2]},
    ):
        changed = {**header, POSITIONS: {**header[POSITIONS], **change}}
        text = json.dumps(changed).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(InputError, match="must be a safetensors file"):
            open_checkpoint(str(folder))


def test_weights_of_something_else_are_refused(folder):
    (folder / "model.safetensors").write_bytes(safetensors({"a": np.zeros(3, np.float32)}))
    with pytest.raises(InputError, match=r"must hold one embeddings\.cls_token"):
        open_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.safetensors must be"):
        open_checkpoint(str(folder))


# The Hub of Hugging Face, as far as this needs it: one open, one gated, one private model.

_COMMIT = "0123456789" * 4


def _hub(folder: Path) -> http.server.ThreadingHTTPServer:
    names = [path.name for path in folder.iterdir() if path.name != "preprocessor_config.json"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            model = next((name for name in ("midnight", "gated") if name in parts), None)
            headers, content, code = {}, b"", 200
            if model is None:
                code, headers = 401, {"X-Error-Code": "RepoNotFound"}
            elif parts[0] == "api":
                info: object = {"id": f"kaiko-ai/{model}", "sha": _COMMIT}
                if "tree" in parts:
                    entry = {"type": "file", "oid": _COMMIT}
                    sizes = {name: (folder / name).stat().st_size for name in names}
                    info = [{**entry, "path": name, "size": sizes[name]} for name in names]
                content, headers = json.dumps(info).encode(), {"Content-Type": "application/json"}
            elif model == "gated":
                code, headers = 401, {"X-Error-Code": "GatedRepo"}
            else:
                content = (folder / parts[-1]).read_bytes()
                headers = {"ETag": f'"{parts[-1]}"', "X-Repo-Commit": _COMMIT}
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _asked(endpoint: str, home: Path, *backbones: str) -> list[str]:
    """What is said of models of a Hub, in a process that has this Hub only."""
    code = (
        "import sys\n"
        "from bach.core.errors import InputError\n"
        "from bach.network.checkpoints import open_checkpoint\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(open_checkpoint(name).scale[0])\n"
        "    except InputError as error:\n"
        "        print(str(error).replace('\\n', ' '))\n"
    )
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, "-c", code, *backbones],
        cwd=ROOT,
        env={**environment, **ours, "HF_TOKEN": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_of_the_hub_is_downloaded_once_or_refused_in_a_sentence(folder, tmp_path):
    pytest.importorskip("huggingface_hub", reason="comes with KerasHub, which is not installed")
    server = _hub(folder)
    home = tmp_path / "home"
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        names = (
            "hf://kaiko-ai/midnight",
            "hf://kaiko-ai/gated",
            "hf://kaiko-ai/absent",
            "hf://a/b/c",
        )
        whole, gated, absent, wrong = _asked(endpoint, home, *names)
    finally:
        server.shutdown()
        server.server_close()
    assert float(whole) == pytest.approx(1 / 127.5)  # which its page says, not a file of its own
    assert "it is gated. Received: --backbone=hf://kaiko-ai/gated" in gated
    assert "Accept its terms on its page" in gated
    for said in (absent, wrong):
        assert said.startswith(
            "The model must exist as hf://OWNER/NAME. Received: --backbone=hf://"
        )
    # Without network: what was downloaded serves, what was not needs it.
    whole, gated = _asked(endpoint, home, *names[:2])
    assert float(whole) == pytest.approx(1 / 127.5)
    assert gated.startswith("The model must be downloaded once, which needs the network.")
