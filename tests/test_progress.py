import re
import subprocess
import sys

from dqcore.progress import TrainingBar, plain_lines, progress_bar


def _on_a_terminal(monkeypatch):
    """Not a fixture: pytest captures stderr anew when the test begins."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def _words(text):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_nothing_is_shown_without_a_terminal(capfd):
    with progress_bar() as bar:
        bar.advance(bar.add_task("encode", total=2))
    assert capfd.readouterr() == ("", "")


def test_a_bar_names_its_task(monkeypatch, capfd):
    _on_a_terminal(monkeypatch)
    with progress_bar() as bar:
        bar.update(bar.add_task("encode", total=2), completed=2)
    out, err = capfd.readouterr()
    assert out == "" and "encode" in _words(err) and "2/2" in _words(err)


def test_the_bar_of_a_prior(monkeypatch, capfd):
    _on_a_terminal(monkeypatch)
    bar = TrainingBar(0, 4)
    bar.show({"step": 2, "loss": 1.5, "images_per_second": 7.0})
    bar.show({"step": 2, "val_loss": 1.25, "val_bits_per_image": 900.4})
    bar.move(3)
    bar.stop()
    out, err = capfd.readouterr()
    assert out == "" and "loss 1.5000  7 images/s" in _words(err) and "3/4" in _words(err)
    assert "step 2: validation loss 1.2500, 900 bits an image" in _words(err)


def test_plain_lines_at_each_validation(capsys):
    show = plain_lines(200)
    show({"step": 1, "reconstruction_loss": 0.5, "images_per_second": 30.0})
    show({"step": 100, "val_psnr": 20.123})
    show({"step": 200, "val_bits_per_image": 812.6})
    assert capsys.readouterr().out.splitlines() == [
        "step   100 of 200: L1 0.500, held-out PSNR 20.12 dB, 30 images/s",
        "step   200 of 200: held-out 813 bits an image",
    ]


def test_a_terminal_is_left_to_the_bar(monkeypatch):
    _on_a_terminal(monkeypatch)
    assert plain_lines(10) is None


def test_importing_it_loads_no_rich():
    script = "import sys; import dqcore.progress; assert 'rich' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
