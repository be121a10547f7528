"""What the scripts share: other projects' settings, streams that are not there, faults shown."""

import io
import json
import os
import subprocess
import sys

import pytest
from helpers import EXAMPLES, ROOT, run_here, run_script

import generate_caption
from captioning import cli
from captioning.cli import INCLUDED_H5


def run(main) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    return ended.value.code


@pytest.mark.long
def test_another_project_s_keras_settings_do_not_count(said, tmp_path):
    settings = {"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    env = os.environ | {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path)}
    photo = EXAMPLES / "donna.jpg"
    options = ("--image_path", photo, "--model_path", INCLUDED_H5, "--beam_size", 3)
    done = run_script("generate_caption.py", *options, env=env)
    assert done.stdout == f"{photo}\t{said['donna.jpg']}\n"


def test_what_was_printed_before_an_error_is_not_lost():
    code = "from captioning import cli\ndef main():\n    print('made')\n    raise OSError\n"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert run_script("-c", code + "cli.run(main)", code=1, env=env).stdout == "made\n"


@pytest.mark.parametrize(
    "settings",
    [{"KERAS_BACKEND": "torch"}, pytest.param({"KERAS_HOME": "."}, marks=pytest.mark.long)],
    ids=["backend", "file"],
)
def test_the_model_cannot_be_imported_under_other_settings(settings, tmp_path):
    (tmp_path / "keras.json").write_text('{"floatx": "float16"}')
    env = os.environ | {"PYTHONPATH": str(ROOT)} | settings
    code = "try:\n    import model\nexcept ImportError as error:\n    print(error)"
    (line,) = run_script("-c", code, env=env, cwd=tmp_path).stdout.splitlines()
    assert line.startswith("Keras must be set to tensorflow, float32 and channels_last (")
    assert ("torch" if "KERAS_BACKEND" in settings else "tensorflow, float16") in line


def test_streams_that_are_others_or_not_there(monkeypatch):
    """As in a notebook; as under pythonw; as under a shell's >&-."""
    for stdout, stderr in ((io.StringIO(), io.StringIO()), (None, None), (io.StringIO(), None)):
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)

        def main():
            print("a caption")
            cli.log("a message")
            with cli.progress(2, "image") as bar:
                bar.update(2)

        assert run(main) == 0
        assert stdout is None or stdout.getvalue() == "a caption\n"
        assert stderr is None or stderr.getvalue().startswith("a message\n")


def test_captions_for_nobody_are_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit) as ended, monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["generate_caption.py", "--image_path", str(EXAMPLES)])
        stderr = io.StringIO()
        patch.setattr(sys, "stderr", stderr)
        cli.run(generate_caption.main)
    assert ended.value.code == 1
    assert "stdout is closed: give --output FILE" in stderr.getvalue()


@pytest.mark.parametrize(
    ("fault", "shown"),
    [("raise ImportError('no AVX')", "no AVX"), ("os.abort()", "Fatal Python error: Aborted")],
)
def test_what_is_printed_while_tensorflow_is_imported_shows_if_that_fails(fault, shown, tmp_path):
    fake = f"import os\nos.write(2, b'from C++ ')\n{fault}\n"
    (tmp_path / "tensorflow.py").write_text(fake)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code = "from captioning import cli\ncli.run(cli.load_tensorflow)"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode not in (0, 2)
    assert shown in done.stderr
    assert ("from C++" in done.stderr) == ("Import" in fault)


def test_bad_arguments_are_found_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    under = tmp_path / "file" / "x"
    photo = ("generate_caption.py", "--image_path", EXAMPLES / "donna.jpg")
    for command, code, message in (
        ((*photo, "--length_penalty", "nan"), 2, "nan is not a finite number"),
        ((*photo, "--save_figure", "x.txt"), 2, "x.txt is not a picture's name: it must end in"),
        ((*photo, "--save_figure", f"{under}.png"), 1, f"cannot write {under}.png: "),
        ((*photo, "--output", under), 1, f"cannot write {under}.partial: "),
        ((*photo, "--output", tmp_path), 1, "is a folder: name a file"),
        (("train.py", "--model_path", f"{under}.h5"), 1, f"cannot write {under}.h5: "),
        (("train.py", "--model_path", tmp_path / ("x" * 250 + ".h5")), 1, "File name too long"),
        (("finetune.py", "x.h5", "--model_path", f"{under}.h5"), 1, f"cannot write {under}.h5: "),
        (("evaluate.py", "--model_path", INCLUDED_H5, "--output_dir", under), 1, "cannot write"),
    ):
        done = run_here(*command, code=code)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
