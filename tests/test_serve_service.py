"""The service as a process of its own: what it answers, refuses, and survives."""

import concurrent.futures
import io
import json
import shutil
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("httpx")

from serving import make_model, make_slides, photo, serving

from bach.classes import CLASSES, PROB_COLUMNS

NAME = "A 01 é#2%.svs"  # what is hard in addresses
MAPS = ("heatmaps", "probs", "class_maps", "overlays", "tissue")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("service")
    make_model(path)
    make_slides(path, NAME, "b.svs")
    photo(path / "photo.png")
    return path


@pytest.fixture(scope="module")
def served(folder):
    with serving(folder, "--photo-mb", "20", "--slide-gb", "0.01") as service:
        yield service


@pytest.fixture(scope="module")
def models(folder):
    from bach.network.predict import load_models

    return list(load_models(folder / "run").values())


# Photos


def test_a_photo_gets_the_mean_over_its_patches_as_a_submission_has_it(served, folder, models):
    from bach.network.predict import predict_photos

    images = pd.DataFrame(
        {"image_id": ["photo"], "path": [str(folder / "photo.png")], "width": 2048, "height": 1536}
    )
    right = predict_photos(models, images)[list(PROB_COLUMNS)].to_numpy()[0]
    answer = served.photo(folder / "photo.png")
    assert answer.status_code == 200
    value = answer.json()
    assert list(value) == ["status", "predictions"]
    assert value["status"] == "ok"
    assert all(list(p) == ["label_id", "label", "probability"] for p in value["predictions"])
    found = {p["label"]: p["probability"] for p in value["predictions"]}
    assert [found[name] for name in CLASSES] == pytest.approx(right, abs=1e-6)
    assert [p["label"] for p in value["predictions"]] == [
        CLASSES[int(p["label_id"])] for p in value["predictions"]
    ]
    probs = [p["probability"] for p in value["predictions"]]
    assert probs == sorted(probs, reverse=True)


def test_photos_that_come_at_once_get_the_same_answers_as_alone(served, folder):
    paths = [folder / f"many{k}.png" for k in range(3)]
    from bach.core.pictures import write_png

    for k, path in enumerate(paths):
        noise = np.random.default_rng(k).integers(0, 256, (48, 64, 3), np.uint8)
        write_png(path, noise.repeat(32, axis=0).repeat(32, axis=1))
    alone = [served.photo(path).json()["predictions"] for path in paths]
    assert alone[0] != alone[1]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(served.photo, paths * 8))
    for k, answer in enumerate(together):
        assert answer.status_code == 200
        for one, other in zip(answer.json()["predictions"], alone[k % 3], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_a_photo_of_another_size_needs_a_scale(served, folder):
    path = photo(folder / "large é.png", (2500, 1800))
    answer = served.photo(path)
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("Photos that are not 2048x1536 px")
    assert "large é.png" in answer.json()["message"]
    assert served.photo(path, mpp="0.42").status_code == 200
    for bad in ("0", "-1", "nan", "inf", "x", "0.0001", "1e400"):
        assert served.photo(path, mpp=bad).status_code == 400, bad


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        sum_ = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def test_photos_that_cannot_be_used_are_refused_in_words_without_our_folders(served, folder):
    whole = (folder / "photo.png").read_bytes()
    contents = {
        "cut.png": whole[: len(whole) // 2],
        "empty.png": b"",
        "text.tif": b"no picture",
        "bomb.png": bomb(60_000, 60_000),
        "small.png": bomb(10, 10),
        "../../etc/passwd.png": b"x",
    }
    for name, content in contents.items():
        answer = served.post("/model/predict", files={"image": (name, content)})
        assert answer.status_code == 400, name
        value = answer.json()
        assert value["status"] == "error"
        assert str(folder) not in value["message"]
        assert "incoming" not in value["message"]
    assert list((folder / "jobs" / "incoming").iterdir()) == []  # nothing is left


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"\xff" * 100, "multipart/form-data; boundary=x"),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
        (b"{}", "application/json"),
        (b"image=x", "application/x-www-form-urlencoded"),
        (b"x", "multipart/form-data"),
        (b"x", ""),
    ],
)
def test_what_is_no_form_is_refused(served, content, kind):
    headers = {"Content-Type": kind} if kind else {}
    answer = served.post("/model/predict", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["status"] == "error"


def test_a_form_with_two_files_or_another_field_is_refused(served):
    files = [("image", ("a.png", b"x")), ("image", ("b.png", b"x"))]
    assert "a second one" in served.post("/model/predict", files=files).json()["message"]
    answer = served.post("/model/predict", files={"file": ("a.png", b"x")})
    assert "in the field image" in answer.json()["message"]


def test_more_than_is_taken_is_refused_whether_its_size_is_stated_or_not(served):
    content = b"x" * (21 * 2**20)
    answer = served.post("/model/predict", files={"image": ("a.png", content)})
    assert answer.status_code == 413

    def parts():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(21):
            yield b"x" * 2**20

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert served.post("/model/predict", content=parts(), headers=kind).status_code == 413


def test_the_model_is_described_as_the_model_asset_exchange_does(served):
    value = served.get("/model/metadata").json()
    assert list(value) == ["id", "name", "description", "type", "source", "license"]
    assert all(isinstance(text, str) and text for text in value.values())


# The Open Inference Protocol


def test_patches_are_predicted_by_the_open_inference_protocol(served, models):
    from bach.network.predict import predict_patches

    about = served.get("/v2/models/bach").json()
    assert about["inputs"] == [{"name": "patches", "datatype": "UINT8", "shape": [-1, 299, 299, 3]}]
    assert about["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 4]}]
    patches = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    right = predict_patches(models[0], patches)
    for data in (patches.ravel().tolist(), patches.tolist()):  # both are allowed
        tensor = {"name": "patches", "datatype": "UINT8", "shape": [2, 299, 299, 3], "data": data}
        answer = served.post("/v2/models/bach/infer", json={"id": "42", "inputs": [tensor]})
        assert answer.status_code == 200
        value = answer.json()
        assert (value["model_name"], value["id"]) == ("bach", "42")
        (output,) = value["outputs"]
        assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
        assert output["shape"] == [2, 4]
        assert np.reshape(output["data"], (2, 4)) == pytest.approx(right, abs=1e-6)


def test_tensors_that_the_model_does_not_take_are_refused(served):
    good = {"name": "patches", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}
    side = {**good, "shape": [1, 299, 299, 3]}
    bodies = [
        b"",
        b"[" * 100_000,
        b"null",
        json.dumps({"inputs": []}).encode(),
        *(
            json.dumps({"inputs": [tensor]}).encode()
            for tensor in (
                good,
                side,
                {**side, "data": [0.5] * (299 * 299 * 3)},
                {**side, "data": [256] * (299 * 299 * 3)},
                {**side, "data": [[1], [1, 2]]},
                {**side, "data": "x"},
                {**good, "shape": [-1, 299, 299, 3]},
                {**good, "shape": "x"},
                {**good, "datatype": "FP32"},
                {**good, "name": "x"},
                {"name": "patches"},
                7,
            )
        ),
    ]
    for body in bodies:
        answer = served.post("/v2/models/bach/infer", content=body)
        assert answer.status_code == 400, body[:100]
        assert list(answer.json()) == ["error"]
    assert served.get("/v2/models/other").status_code == 404
    assert list(served.get("/v2/models/other").json()) == ["error"]


def test_health_and_server_are_told(served):
    assert served.get("/v2/health/live").json()["live"] is True
    assert served.get("/v2/health/ready").status_code == 200
    assert served.get("/v2/models/bach/ready").json() == {"name": "bach", "ready": True}
    assert sorted(served.get("/v2").json()) == ["extensions", "name", "version"]


# Slides


def test_a_job_is_byte_for_byte_what_make_heatmap_makes_photos_or_not(served, folder):
    import make_heatmap

    assert served.get("/slides").json() == {"slides": [NAME, "b.svs"]}
    ends = threading.Event()

    def send_photos() -> None:
        while not ends.is_set():
            assert served.photo(folder / "photo.png").status_code == 200

    thread = threading.Thread(target=send_photos)
    thread.start()
    answer = served.post("/slides", json={"path": NAME})
    assert answer.status_code == 202
    id = answer.json()["id"]
    assert answer.headers["Location"] == f"/jobs/{id}"
    job = served.wait(id, "finished", "failed")
    ends.set()
    thread.join()
    assert job["state"] == "finished", job
    run = folder / "reference"
    words = ["--slides", str(folder / "slides" / NAME), "--model-dir", str(folder / "run")]
    assert make_heatmap.main([*words, "--run-dir", str(run)]) == 0
    stem = Path(NAME).stem
    for kind in MAPS:
        for file in (run / kind).iterdir():
            assert file.read_bytes() == (folder / "jobs" / id / kind / file.name).read_bytes()
    ours, theirs = (
        json.loads((place / "slides" / f"{stem}.json").read_text(encoding="utf-8"))
        for place in (folder / "jobs" / id, run)
    )
    assert ours.pop("seconds")
    assert theirs.pop("seconds")
    assert ours == theirs  # the fingerprint of options and models too


def test_the_results_of_a_job_are_fetched_by_their_names(served, folder):
    id = served.post("/slides", data={"path": NAME}).json()["id"]
    job = served.wait(id, "finished", "failed")
    kinds = {
        "heatmap.png": "image/png",
        "class_map.png": "image/png",
        "probs.npy": None,
        "qupath.geojson.gz": None,
        "classes.tif": "image/tiff",
        "probs.ome.tif": "image/tiff",
    }
    for name, kind in kinds.items():
        answer = served.get(job["results"][name])
        assert answer.status_code == 200, name
        assert kind is None or answer.headers["Content-Type"] == kind
    probs = np.load(io.BytesIO(served.get(f"/jobs/{id}/probs.npy").content))
    assert probs.shape[-1] == len(CLASSES)
    for page in ("report", "viewer"):
        answer = served.get(job["results"][page])
        assert answer.headers["Content-Type"].startswith("text/html")
    for bad in ("x.png", "run.json", "report/../run.json", "report/%2e%2e/run.json", "report/none"):
        assert served.get(f"/jobs/{id}/{bad}").status_code == 404, bad
    assert served.get("/jobs/none").status_code == 404
    assert "finished" in [one["state"] for one in served.get("/jobs").json()]
    assert served.client.delete(f"/jobs/{id}").status_code == 204
    assert served.get(f"/jobs/{id}").status_code == 404
    assert not (folder / "jobs" / id).exists()


def test_a_slide_is_uploaded_and_removed_with_its_job(served, folder):
    with (folder / "slides" / "b.svs").open("rb") as stream:
        answer = served.post("/slides", files={"slide": ("über/../zwei 2.svs", stream)})
    assert answer.status_code == 202
    job = served.wait(answer.json()["id"], "finished", "failed")
    assert (job["slide"], job["state"]) == ("zwei 2.svs", "finished"), job
    uploads = folder / "jobs" / "uploads"
    assert (uploads / job["id"] / "zwei 2.svs").is_file()
    served.client.delete(f"/jobs/{job['id']}")
    assert not (uploads / job["id"]).exists()


def test_slides_that_cannot_be_used_are_refused_at_once(served, folder):
    before = len(served.get("/jobs").json())
    whole = (folder / "slides" / "b.svs").read_bytes()
    for name, content in {
        "cut.svs": whole[: len(whole) // 3],
        "text.svs": b"no slide",
        "x.exe": whole,
        ".svs": whole,
        "no.png": whole,
    }.items():
        answer = served.post("/slides", files={"slide": (name, content)})
        assert answer.status_code == 400, name
        assert str(folder) not in answer.json()["message"]
    assert served.post("/slides", files={"slide": ("a.svs", b"x" * 11 * 2**20)}).status_code == 413
    assert list((folder / "jobs" / "uploads").iterdir()) == []
    assert len(served.get("/jobs").json()) == before


def test_paths_out_of_the_folder_of_slides_are_refused(served, folder):
    slides = folder / "slides"
    secret = folder / "secret.svs"
    shutil.copy(slides / "b.svs", secret)
    (slides / "sub").mkdir(exist_ok=True)
    (slides / "link.svs").symlink_to(secret)
    (slides / "links").symlink_to(folder)
    (slides / "within.svs").symlink_to(slides / "b.svs")
    (slides / "none.svs").symlink_to(folder / "none")
    try:
        for path in (
            "../secret.svs",
            "sub/../../secret.svs",
            "sub/../b.svs",
            str(secret),
            str(slides / "b.svs"),
            "link.svs",
            "links/secret.svs",
            "within.svs",
            "none.svs",
            "",
            ".",
            "sub",
            "b.svs\0",
            "x" * 5000,
            "nowhere.svs",
        ):
            answer = served.post("/slides", json={"path": path})
            assert answer.status_code == 400, path
            assert str(folder) not in answer.json()["message"] or str(folder) in path
        assert served.get("/slides").json() == {"slides": [NAME, "b.svs"]}
    finally:
        for name in ("link.svs", "links", "within.svs", "none.svs"):
            (slides / name).unlink()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"path": 7}', b'{"path": "b.svs", "mpp": []}', b"{"]
)
def test_a_slide_that_is_not_named_in_json_is_refused(served, body):
    answer = served.post("/slides", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


# Limits and manners


def test_figures_tell_of_requests_the_network_and_jobs(served, folder):
    served.photo(folder / "photo.png")
    text = served.get("/metrics").text
    for start in (
        'bach_requests_total{method="POST",route="/model/predict",status="200"}',
        'bach_model_seconds_total{what="photos"}',
        'bach_jobs{state="finished"}',
        "bach_photos_waiting 0",
        "bach_ready 1",
    ):
        assert any(line.startswith(start) for line in text.splitlines()), start
    assert NAME not in text


def test_unknown_addresses_and_methods_are_told_in_the_same_form(served):
    assert served.get("/nothing").json()["status"] == "error"
    assert served.get("/model/predict").status_code == 405
    for limit in ("0", "x", "-1", "1" + "0" * 30):
        assert served.get(f"/jobs?limit={limit}").json()["status"] == "error"
    assert served.get("/assets/../service.py").status_code == 404
    assert served.get("/assets/serve.py").status_code == 404


def test_a_second_service_on_the_same_jobs_is_refused(served, folder):
    from bach.core.errors import InputError
    from bach.serve.__main__ import main

    words = ["--model-dir", str(folder / "run"), "--jobs-dir", str(folder / "jobs"), "--port", "0"]
    with pytest.raises(InputError, match="Another process is at work"):
        main(words)
    port = served.url.rsplit(":", 1)[1].strip("/")
    with pytest.raises(InputError, match="an address and a port of its own"):
        main([*words, "--port", port])


@pytest.mark.slow
def test_more_photos_than_may_wait_are_told_when_to_come_again(folder, tmp_path):
    with serving(folder, "--queue", "1", "--jobs-dir", str(tmp_path)) as service:
        held = service.held_place()
        answer = service.photo(folder / "photo.png")
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json()["status"] == "error"
        held.close()
        end = time.monotonic() + 60
        while service.photo(folder / "photo.png").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.slow
def test_a_photo_that_comes_too_slowly_loses_its_place(folder, tmp_path):
    with serving(folder, "--time-limit-s", "2", "--jobs-dir", str(tmp_path)) as service:
        held = service.held_place()
        with held:
            held.settimeout(60)
            assert held.recv(100).startswith(b"HTTP/1.1 503 ")
        assert "bach_photos_waiting 0" in service.get("/metrics").text


@pytest.mark.slow
def test_a_service_with_a_token_asks_for_it(folder, tmp_path):
    token = "a-token-of-some-length"
    (tmp_path / "token").write_text(token)
    words = ["--host", "0.0.0.0", "--token-file", str(tmp_path / "token")]
    with serving(folder, *words, "--jobs-dir", str(tmp_path / "jobs")) as service:
        port = service.url.rsplit(":", 1)[1].strip("/")
        service.client.base_url = f"http://127.0.0.1:{port}"
        assert service.get("/jobs").status_code == 401
        assert service.get("/v2/health/ready").status_code == 200
        page = service.get("/")
        assert page.status_code == 401
        assert 'name="token"' in page.text
        bearer = {"Authorization": f"Bearer {token}"}
        assert service.get("/jobs", headers=bearer).json() == []
        assert service.post("/login", data={"token": "wrong"}).status_code == 401
        entered = service.post("/login", data={"token": token})
        assert entered.status_code == 303
        for word in ("HttpOnly", "SameSite=strict"):
            assert word in entered.headers["Set-Cookie"]
        assert service.get("/jobs").json() == []  # by its cookie
        assert token not in (folder / "stderr.txt").read_text()


# Ends


def start_three(service) -> list[str]:
    return [
        service.post("/slides", json={"path": name}).json()["id"] for name in (NAME, "b.svs", NAME)
    ]


@pytest.mark.slow
def test_a_service_that_is_killed_loses_no_job(folder, tmp_path):
    words = ["--jobs-dir", str(tmp_path / "jobs"), "--step-um", "40"]
    with serving(folder, *words) as service:
        ids = start_three(service)
        service.working(ids[0])
        service.process.send_signal(signal.SIGKILL)
    with serving(folder, *words) as service:
        for id in ids:
            assert service.wait(id, "finished", "failed")["state"] == "finished"
        made = [service.get(f"/jobs/{id}/probs.npy").content for id in ids]
        assert made[0] == made[2] != made[1]


@pytest.mark.slow
def test_a_service_that_is_asked_to_end_answers_photos_and_keeps_the_slide(folder, tmp_path):
    words = ["--jobs-dir", str(tmp_path / "jobs"), "--step-um", "30"]
    with serving(folder, *words) as service:
        ids = start_three(service)
        service.working(ids[0])
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(service.photo, folder / "photo.png") for _ in range(8)]
            end = time.monotonic() + 60
            while "bach_photos_waiting 8" not in service.get("/metrics").text:
                if all(answer.done() for answer in answers):
                    break
                assert time.monotonic() < end
            service.process.send_signal(signal.SIGTERM)
            assert [answer.result().status_code for answer in answers] == [200] * 8
        assert service.process.wait(60) == 128 + signal.SIGTERM
    record = json.loads((tmp_path / "jobs" / ids[0] / "run.json").read_text())
    assert record["status"] == "interrupted (the service stops)"
    with serving(folder, *words) as service:
        assert service.client.delete(f"/jobs/{ids[2]}").json()["state"] == "cancelled"
        service.working(ids[0])
        service.client.delete(f"/jobs/{ids[0]}")
        service.wait(ids[0], "cancelled")
        assert service.wait(ids[1], "finished", "failed")["state"] == "finished"
        assert not (tmp_path / "jobs" / ids[0]).exists()
