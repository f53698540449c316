"""EDM's pickles: read without running anything in them, converted where the networks coincide, told apart elsewhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from adpm.errors import UserError
from adpm.formats import read, read_weights
from adpm.formats.checkpoint import EMA
from adpm.formats.records import Record, read_records
from adpm.formats.shapes import shape_of
from adpm.nn.checkpoint import load_weights
from adpm.nn.score_sde import NCSNpp
from tests.edm_networks import EDMPrecond, Persistent, SongUNet, Trap, VEPrecond, VPPrecond, iDDPMPrecond, write

NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "decoder_type": "standard",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
DDPMPP = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]}


def song(fourier: bool, **options: Any) -> SongUNet:
    torch.manual_seed(0)
    return SongUNet(8, 3, 16, fourier, **{**(NCSNPP if fourier else DDPMPP), **options})


def converted(path: Path, variant: str) -> NCSNpp:
    network = NCSNpp(
        in_channels=3,
        image_size=8,
        model_channels=16,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        variant=variant,
    )
    load_weights(network, read_weights(path), str(path))
    return network.eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_vp_network_is_ddpmpp(tmp_path: Path) -> None:
    """eps = F(x_t; 999 t)."""
    whole = VPPrecond(song(False), 8)
    path = write(tmp_path / "vp.pkl", {"ema": whole, "loss_fn": None, "dataset_kwargs": {"path": "x"}})
    x, t = images(), torch.tensor([0.999, 31.0, 500.0, 999.0])
    with torch.no_grad():
        y, found = whole.model(x, t), converted(path, "vp")(x, t)
    assert (found - y).abs().max() < 1e-5 * y.abs().max()


def test_a_ve_network_is_ncsnpp(tmp_path: Path) -> None:
    """With images u in [0, 1] and sigma in their units, EDM's are x = 2 u - 1 and 2 sigma; the score is F / sigma."""
    whole = VEPrecond(song(True), 8)
    path = write(tmp_path / "ve.pkl", {"ema": whole})
    u, sigma = images(), torch.tensor([0.01, 0.3, 4.0, 50.0])
    with torch.no_grad():
        y = whole.model(2 * u - 1, torch.log(0.5 * (2 * sigma))) / sigma[:, None, None, None]
        found = converted(path, "ve")(u, sigma)
    assert ((found - y).flatten(1).abs().amax(1) < 1e-5 * y.flatten(1).abs().amax(1)).all()


def test_what_a_pickle_says_of_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "vp.pkl", {"ema": VPPrecond(song(False), 8)})
    kind, checkpoint = read(path)
    shape = shape_of(checkpoint.state)
    assert kind.about == "a pickle of EDM, the network an object" and checkpoint.chosen == EMA
    assert (checkpoint.side, checkpoint.predicts, checkpoint.unusable) == (8, "eps", "")
    assert shape is not None and str(shape).startswith("a score_sde VP network, 1 block, width 16 (1, 2)")
    assert checkpoint.remarks == ("its layer for augmentation labels is left out: no label is given when it samples",)
    _, raw = read(write(tmp_path / "net.pkl", {"net": VPPrecond(song(False), 8)}))
    assert "raw" in raw.chosen and raw.state.keys() == checkpoint.state.keys()
    _, alone = read(write(tmp_path / "alone.pkl", VPPrecond(song(False), 8)))
    assert alone.state.keys() == checkpoint.state.keys()


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (lambda: iDDPMPrecond(song(False), 8), "EDM's SongUNet within iDDPMPrecond, whose output is neither eps, x0"),
        (lambda: EDMPrecond(song(False), 8, 1.0), "EDMPrecond of sigma_data = 1.0, and only 0.5 is read"),
        (
            lambda: EDMPrecond(song(True), 8),
            "within EDMPrecond with embedding_type = 'fourier', channel_mult_",
        ),
        (lambda: VPPrecond(song(True), 8), "SongUNet within VPPrecond with embedding_type = 'fourier', channel_mult_"),
        (
            lambda: VEPrecond(song(True, label_dim=10), 8),
            "SongUNet within VEPrecond with label_dim = 10, which is none",
        ),
        (lambda: VEPrecond(song(True, encoder_type="skip"), 8), "with encoder_type = 'skip', which is none of score_"),
        (lambda: VPPrecond(_Dhariwal(), 8), "EDM's DhariwalUNet within VPPrecond, and only SongUNet is one of score_"),
        (lambda: song(False), "it is an object SongUNet without a network"),
    ],
)
def test_other_networks_are_told_apart(tmp_path: Path, whole: Any, told: str) -> None:
    path = write(tmp_path / "net.pkl", {"ema": whole()})
    with pytest.raises(UserError, match=rf"net\.pkl' fits no network of this project: .*{told}"):
        read_weights(path)


class _Dhariwal(Persistent):
    pass


_Dhariwal.__name__ = "DhariwalUNet"


def test_the_stored_source_is_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    path = write(tmp_path / "vp.pkl", {"ema": VPPrecond(song(False), 8)}, f"open({str(victim)!r}, 'w')")
    assert len(read_weights(path)) > 100 and not victim.exists()
    exec(read_records_source(path), {})
    assert victim.exists()  # the source was a real one


def read_records_source(path: Path) -> str:
    """The source in a pickle, as text."""
    content = path.read_bytes()
    start = content.index(b"open('")
    return content[start : content.index(b"'w')", start) + 4].decode()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """As a value, as a network's attribute, in the storage of a tensor, and by itself."""
    victim, inside = tmp_path / "victim", VPPrecond(song(False), 8)
    inside.model.trap = Trap(victim)
    for n, content in enumerate(
        [{"ema": VPPrecond(song(False), 8), "more": Trap(victim)}, {"ema": inside}, Trap(victim)]
    ):
        path = write(tmp_path / f"{n}.pkl", content)
        with pytest.raises(UserError, match=rf"{n}\.pkl' cannot be read without running code stored in it; refused"):
            read(path)
        assert not victim.exists()
    pickle.loads(pickle.dumps(Trap(victim)))
    assert victim.exists()  # the trap was a real one


class _Storage:
    """A storage whose bytes are a pickle with a trap: torch's own function would run it."""

    def __init__(self, victim: Path, folder: Path) -> None:
        torch.save(Trap(victim), folder / "trap", _use_new_zipfile_serialization=False)
        self.content = (folder / "trap").read_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (self.content,)


def test_a_trap_in_a_tensors_bytes_is_refused(tmp_path: Path) -> None:
    victim, whole = tmp_path / "victim", VPPrecond(song(False), 8)
    whole.model.hidden = _Storage(victim, tmp_path)
    path = write(tmp_path / "vp.pkl", {"ema": whole})
    with pytest.raises(UserError, match=r"vp\.pkl' cannot be read without running code stored in it; refused"):
        read(path)
    assert not victim.exists()
    torch.storage._load_from_bytes(_Storage(victim, tmp_path).content)
    assert victim.exists()


def naming(path: Path, named: str) -> Path:
    """A pickle that calls what it names with one argument."""
    module, _, name = named.rpartition(".")
    path.write_bytes(b"\x80\x04" + f"c{module}\n{name}\n".encode() + b"\x8c\x04true\x85R.")
    return path


@pytest.mark.parametrize("named", ["os.system", "builtins.eval", "torch.load", "numpy.load", "torch_utils.misc.print"])
def test_names_are_refused_before_they_are_looked_up(tmp_path: Path, named: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=f"it names {named}"):
        read_records(naming(tmp_path / "a.pkl", named))


def test_what_torchs_modules_are_called_with_does_nothing(tmp_path: Path) -> None:
    found = read_records(naming(tmp_path / "a.pkl", "torch.nn.modules.os.system"))
    assert isinstance(found, Record) and found.kind == "system" and found.attributes == {}


def test_nothing_that_a_pickle_does_to_a_name_outlives_it(tmp_path: Path) -> None:
    """A pickle may set attributes of what it names; the next file gets other objects."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04ctorch.storage\n_load_from_bytes\nN}\x8c\x0c__defaults__\x88s\x86b.")
    with pytest.raises((TypeError, AttributeError)):
        read_records(path)
    whole = write(tmp_path / "vp.pkl", {"ema": VPPrecond(song(False), 8)})
    assert len(read_weights(whole)) > 100


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_pickles_are_refused(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path / "vp.pkl", {"ema": VPPrecond(song(False), 8)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"vp\.pkl' (is not a whole checkpoint|cannot be read without running)"):
        read_weights(path)


def test_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    network = song(False)
    del network.dec["8x8_block0"].conv1.bias
    path = write(tmp_path / "vp.pkl", {"ema": VPPrecond(network, 8)})
    with pytest.raises(UserError, match=r"1 missing: all_modules\.\d+\.Conv_1\.bias"):
        converted(path, "vp")
