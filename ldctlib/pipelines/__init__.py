"""Trained models from HU to HU: what is trained is what is sampled."""

from ldctlib.pipelines.conditioning import Conditioning, Conditions
from ldctlib.pipelines.grid import LatentGrid, PixelGrid
from ldctlib.pipelines.pipeline import DiffusionPipeline, PipelineSpec
from ldctlib.pipelines.prior import Prior
from ldctlib.pipelines.published import GreyOfThree, published_prior
from ldctlib.pipelines.published_benchmark import published_network
from ldctlib.pipelines.regression import RegressionNetwork
from ldctlib.pipelines.synthesis import PixelSynthesis, SynthesisPipeline
