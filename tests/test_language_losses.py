"""Eqs 1 to 3 of LEDA against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldctlib.errors import ParameterError, ShapeError
from ldctlib.losses.adversarial import hinge_discriminator, hinge_generator
from ldctlib.losses.language import LEDALoss, candidate_pools, semantic_loss
from ldctlib.losses.vqgan import VQGANLoss, adaptive_weight
from ldctlib.models.patchgan import PatchGAN
from ldctlib.models.vqgan import VQGAN, VQGAN_RANGE
from ldctlib.units import Range

SMALL = dict(width=8, channel_mult=(1, 2), z_channels=8, norm_groups=4, unshuffle=2, codebook_size=20, embed_dim=12)


@pytest.fixture
def model() -> VQGAN:
    torch.manual_seed(0)
    built = VQGAN(**SMALL)
    built.set_codebook(torch.randn(20, 12) * 0.1)
    built.move_features(built.encode(torch.rand(4, 1, 64, 64)))
    return built


# ---------------------------------------------------------------- the semantic loss


def test_pools_are_relative_to_each_image():
    similarities = torch.tensor([[0.20, 0.21, 0.2091, 0.2083, 0.2079], [-3.0, 1.0, 0.65, 0.55, -1.0]])
    pools = candidate_pools(similarities)
    assert pools[0].int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    assert pools[1].int().tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    torch.testing.assert_close(candidate_pools(similarities * 7 - 3), pools)
    assert candidate_pools(torch.zeros(1, 5)).all()  # nothing tells the words apart
    assert candidate_pools(torch.rand(50, 30), (1.0,)).any(dim=-1).all()
    without = torch.cat([similarities, torch.full((2, 1), -torch.inf)], dim=1)  # words that take no part
    assert torch.equal(candidate_pools(without)[..., :5], pools) and not candidate_pools(without)[..., 5].any()
    for bad in ([0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]):
        with pytest.raises(ParameterError, match="finite"):
            candidate_pools(torch.tensor([[0.0, 1.0], bad]))
    with pytest.raises(ShapeError):
        candidate_pools(torch.zeros(5))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("chunk", [2**25, 100])
def test_the_semantic_loss_is_a_log_softmax_at_every_position(temperature, chunk, monkeypatch):
    """And its gradient in z is 2 (E_p[e] - mean e_c), over temperature and the numbers of what it averages."""
    monkeypatch.setattr("ldctlib.losses.language.CHUNK", chunk)
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(20, 6, generator=generator)
    layers = [torch.randn(2, 6, n, n, generator=generator).requires_grad_() for n in (1, 2, 4)]
    candidates = torch.rand(2, 3, 20, generator=generator) > 0.7
    loss = semantic_loss(layers, codebook, candidates, temperature=temperature)
    loss.backward()
    expected = []
    for layer, z in enumerate(layers):
        for image in range(2):
            at = z[image].detach().flatten(1).T  # (positions, C)
            log_p = F.log_softmax(-torch.cdist(at, codebook).square() / temperature, dim=1)
            expected += [-log_p[:, candidates[image, layer]].mean()]
            right = codebook[candidates[image, layer]].mean(dim=0)
            gradient = 2 * (log_p.exp() @ codebook - right) / temperature / (len(at) * 2 * 3)
            torch.testing.assert_close(z.grad[image].flatten(1).T, gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    weights = candidates * torch.tensor([3.0, 1.0])[:, None, None]  # weights count relative to an image's sum
    torch.testing.assert_close(semantic_loss(layers, codebook, weights, temperature=temperature), loss)


@pytest.mark.parametrize("chunk", [2**25, 100])
def test_any_candidate_is_the_probability_of_all_of_them_together(chunk, monkeypatch):
    """Its gradient in z is 2 (E_p[e] - E_{p among candidates}[e]) over temperature: towards the nearest of them."""
    monkeypatch.setattr("ldctlib.losses.language.CHUNK", chunk)
    generator = torch.Generator().manual_seed(2)
    codebook, z = torch.randn(20, 6, generator=generator), torch.randn(2, 6, 4, 4, generator=generator).requires_grad_()
    candidates = torch.rand(2, 1, 20, generator=generator) > 0.7
    loss = semantic_loss([z], codebook, candidates, temperature=0.3, of="any")
    loss.backward()
    expected = []
    for image in range(2):
        at, inside = z[image].detach().flatten(1).T, candidates[image, 0]
        p = F.softmax(-torch.cdist(at, codebook).square() / 0.3, dim=1)
        expected += [-p[:, inside].sum(dim=1).log().mean()]
        among = p * inside / (p * inside).sum(dim=1, keepdim=True)
        gradient = 2 * (p - among) @ codebook / 0.3 / (len(at) * 2)
        torch.testing.assert_close(z.grad[image].flatten(1).T, gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    assert semantic_loss([z], codebook, torch.ones(2, 1, 20), of="any").abs() < 1e-6  # all words are right
    one = torch.zeros(2, 1, 20)
    one[..., 3] = 1
    torch.testing.assert_close(semantic_loss([z], codebook, one, of="any"), semantic_loss([z], codebook, one))
    with pytest.raises(ParameterError, match="'every' or 'any'"):
        semantic_loss([z], codebook, one, of="all")


def test_the_semantic_loss_does_not_overflow():
    z, codebook = torch.full((1, 4, 1, 1), 100.0), torch.eye(4) * 50
    loss = semantic_loss([z], codebook, torch.tensor([[[True, False, False, False]]]))
    torch.testing.assert_close(loss, torch.tensor(4.0).log(), rtol=0, atol=1e-3)  # float32 near 7,500 has steps of 5e-4


def test_the_semantic_loss_refuses_what_does_not_fit():
    z, codebook = [torch.zeros(2, 4, 1, 1)], torch.zeros(5, 4)
    with pytest.raises(ShapeError, match="candidates"):
        semantic_loss(z, codebook, torch.ones(2, 2, 5))
    with pytest.raises(ParameterError, match="candidate on every layer"):
        semantic_loss(z, codebook, torch.zeros(2, 1, 5))
    with pytest.raises(ParameterError, match="temperature"):
        semantic_loss(z, codebook, torch.ones(2, 1, 5), temperature=0)


# ---------------------------------------------------------------- the autoencoder's loss


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert hinge_generator(fake).item() == pytest.approx(2 / 3)


def test_the_adaptive_weight_is_its_definition():
    layer = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction, adversarial = (layer * torch.tensor([3.0, 4.0])).sum(), (layer * torch.tensor([0.0, 2.0])).sum()
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx(5 / (2 + 1e-4)) and not weight.requires_grad
    assert adaptive_weight(reconstruction * 1e6, adversarial * 1e-9, layer).item() == 1e4
    assert layer.grad is None


def test_the_paper_s_total_and_a_detached_omega(model):
    x, generator = torch.rand(2, 1, 64, 64), torch.Generator().manual_seed(2)
    discriminator = PatchGAN(width=4).eval()
    for p in discriminator.parameters():
        p.requires_grad_(False)
    distance = lambda a, b: (a - b).abs().mean()  # noqa: E731
    candidates = torch.rand(2, 3, 20, generator=generator) > 0.5
    candidates[..., 0] = True

    def terms():
        made = model(x)
        semantic = semantic_loss(made.quantised.embeddings, model.quantiser.codebook, candidates)
        return made, semantic, -discriminator(made.image).mean()

    made, semantic, gan = terms()
    loss = VQGANLoss(distance)(x, made, 0, discriminator=discriminator, semantic=semantic)
    vqgan = F.mse_loss(made.image, x) + 0.3 * made.quantised.commitment + 0.1 * gan + 0.1 * distance(made.image, x)
    assert vqgan > 0
    torch.testing.assert_close(loss["loss"], 1.3 * vqgan)  # omega * semantic has the value of L_VQGAN
    torch.testing.assert_close(loss["omega"], vqgan / semantic)
    got = torch.autograd.grad(loss["loss"], model.quant_conv.weight, retain_graph=True)[0]
    expected = torch.autograd.grad(vqgan + 0.3 * (vqgan / semantic).item() * semantic, model.quant_conv.weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)  # so no gradient runs through omega
    made, semantic, _ = terms()
    negative = VQGANLoss(gamma=1e4)(x, made, 0, discriminator=lambda image: image + 1e3, semantic=semantic)
    assert negative["omega"] == 0 and negative["loss"] < 0


def test_the_released_total(model):
    x, discriminator, distance = torch.rand(1, 1, 64, 64), PatchGAN(width=4), nn.L1Loss()
    total = VQGANLoss(distance, "released", discriminator_start=10)
    early = total(x, made := model(x), 9, discriminator=discriminator, last_layer=model.last_layer)
    fidelity = 2 * distance(made.image, x)
    assert "gan" not in early
    torch.testing.assert_close(early["loss"], fidelity + made.quantised.commitment)
    late = total(x, made, 10, discriminator=discriminator, last_layer=model.last_layer)
    gan = -discriminator(made.image).mean()
    rec, adversarial = (torch.autograd.grad(t, model.last_layer, retain_graph=True)[0].norm() for t in (fidelity, gan))
    torch.testing.assert_close(late["adaptive"], rec / (adversarial + 1e-4), rtol=1e-4, atol=0)
    torch.testing.assert_close(late["loss"], early["loss"] + 0.8 * late["adaptive"] * gan)
    with pytest.raises(ParameterError, match="recipe"):
        VQGANLoss(recipe="mine")


def test_a_learned_codebook_is_moved_by_its_own_loss():
    torch.manual_seed(0)
    model, x = VQGAN(**SMALL, learned=True), torch.rand(1, 1, 64, 64)
    for learned in (False, True):
        model.zero_grad()
        VQGANLoss()(x, model(x), 0, learned=learned)["loss"].backward()
        assert (model.quantiser.codebook.grad is not None and model.quantiser.codebook.grad.any()) == learned


# ---------------------------------------------------------------- LEDA


def test_leda_s_two_terms(model):
    prediction, reference = torch.rand(2, 1, 64, 64), torch.rand(2, 1, 64, 64)
    a, b = model.quantise(prediction), model.quantise(reference)
    c, d = F.mse_loss(a.z, b.z).item(), F.mse_loss(a.z_q, b.z_q).item()
    assert c > 0 and d > 0
    for spaces, expected in (({}, c + d), ({"discrete": False}, c), ({"continuous": False}, d)):
        leda = LEDALoss(model, **spaces)
        assert leda(prediction, reference).item() == pytest.approx(0.5 * expected, rel=1e-5)
        assert leda(prediction, leda.features(reference)).item() == leda(prediction, reference).item()
        assert leda(reference, reference).item() == 0
    for image_range in (None, Range(-1024.0, 3072.0)):
        given = [VQGAN_RANGE.from_model(image) for image in (prediction, reference)]
        given = given if image_range is None else [image_range.to_model(hu) for hu in given]
        assert LEDALoss(model, image_range=image_range)(*given).item() == pytest.approx(0.5 * (c + d), rel=1e-3)


def test_the_discrete_gradient_is_its_closed_form(model):
    """2 (z_q_hat - z_q) / N in the features, and from there through the encoder into the image."""
    prediction, reference = torch.rand(1, 1, 64, 64, requires_grad=True), torch.rand(1, 1, 64, 64)
    leda = LEDALoss(model, weight=1.0, continuous=False)
    got = torch.autograd.grad(leda(prediction, reference), prediction)[0]
    z = leda.autoencoder.encode(prediction)
    difference = (leda.autoencoder.quantiser(z).z_q - leda.autoencoder.quantise(reference).z_q).detach()
    expected = torch.autograd.grad((z * 2 * difference / difference.numel()).sum(), prediction)[0]
    assert got.abs().sum() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_both_terms_reach_a_denoiser_and_leave_the_autoencoder(model):
    denoiser, x, y = nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 64, 64), torch.rand(1, 1, 64, 64)
    for spaces in ({"discrete": False}, {"continuous": False}):
        leda = LEDALoss(model, **spaces).train()
        assert not leda.autoencoder.training and not any(p.requires_grad for p in leda.parameters())
        before = {k: v.clone() for k, v in leda.state_dict().items()}
        denoiser.zero_grad()
        leda(denoiser(x), y).backward()
        assert denoiser.weight.grad.abs().sum() > 0
        assert all(torch.equal(before[k], v) for k, v in leda.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())  # a copy is frozen, not the caller's


def test_leda_refuses_what_does_not_fit(model):
    with pytest.raises(ParameterError, match="one of its spaces"):
        LEDALoss(model, continuous=False, discrete=False)
    with pytest.raises(ShapeError, match="differ"):
        LEDALoss(model)(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 128))
    x = torch.zeros(1, 1, 64, 64)
    with pytest.raises(ShapeError, match=r"multiples of 64 \(16 x 4\) for words and LEDA-D, got \(1, 1, 32, 32\)"):
        LEDALoss(model)(x[..., :32, :32], x[..., :32, :32])
    assert LEDALoss(model, discrete=False)(x[..., :32, :32], x[..., :32, :32]) == 0
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ParameterError, match="the prediction has values that are not finite"):
            LEDALoss(model)(x.clone().index_fill_(3, torch.tensor(5), bad), x)
    with pytest.raises(ParameterError, match="the reference has values from -800 to -800, far outside"):
        LEDALoss(model)(x, x - 800)
    assert LEDALoss(model, image_range=None)(x, x - 800) > 0
    with pytest.raises(ParameterError, match="far outside HU"):
        LEDALoss(model, image_range=None).features(x + 9000)


def test_kept_features_must_fit(model):
    x, kept = torch.rand(2, 1, 64, 64), LEDALoss(model, discrete=False).features(torch.rand(2, 1, 64, 64))
    assert kept.discrete is None and LEDALoss(model, discrete=False)(x, kept) > 0
    with pytest.raises(ParameterError, match="without LEDA-D"):
        LEDALoss(model)(x, kept)
    with pytest.raises(ShapeError, match="features of prediction and reference differ"):
        LEDALoss(model, discrete=False)(x[:1], kept)  # one image would broadcast


def test_leda_works_under_autocast(model):
    x, y = torch.rand(1, 1, 64, 64, requires_grad=True), torch.rand(1, 1, 64, 64)
    leda = LEDALoss(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = leda(x.bfloat16(), y)
    loss.backward()
    assert loss.dtype == torch.float32 and x.grad.abs().sum() > 0
    assert loss.item() == pytest.approx(leda(x, y).item(), rel=0.2)  # bfloat16 has 3 digits; a few words change
