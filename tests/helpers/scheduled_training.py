"""A tiny model, trained a few steps by one of our trainers."""

from functools import partial

import torch
from pytorch_metric_learning import losses
from torch import nn
from torch.nn.utils import clip_grad_value_
from torch.utils.data import SequentialSampler, TensorDataset

from pml_gca import GlobalCorrelationGenerator, HardNegativeGenerationLoss

LABELS = [0, 1, 2, 0, 1, 2, 2]
RATES = {"embedder": 3e-3, "propagation": 2e-3, "auxiliary": 1e-3}
DECAY, CLIP, EPOCHS, ITERATIONS, BETA = 0.1, 0.02, 3, 2, 20.0


def make_models():
    torch.manual_seed(0)
    models = {"trunk": nn.Linear(5, 6).double(), "embedder": nn.Linear(6, 8).double()}
    generator = GlobalCorrelationGenerator(4, 8, num_layers=2, num_heads=2, dropout=0.0, alpha=0.5).double()
    return models, generator, torch.randn(len(LABELS), 5, dtype=torch.float64)


def train(trainer_class, models, generator, images, **kwargs):
    loss = HardNegativeGenerationLoss(losses.ContrastiveLoss(), generator, beta=BETA, level_momentum=None)
    optimizers = {
        f"{name}_optimizer": torch.optim.AdamW(model.parameters(), lr=RATES["embedder"], weight_decay=DECAY)
        for name, model in models.items()
    }
    groups = loss.parameter_groups(RATES["propagation"], classifier_lr=RATES["auxiliary"])
    optimizers["metric_loss_optimizer"] = torch.optim.AdamW(groups, weight_decay=DECAY)
    data = TensorDataset(images, torch.tensor(LABELS))
    modules = {**models, "metric_loss": loss}
    trainer = trainer_class(
        models=models,
        optimizers=optimizers,
        loss_funcs={"metric_loss": loss},
        gradient_clippers={
            f"{name}_grad_clipper": partial(clip_grad_value_, list(m.parameters()), CLIP) for name, m in modules.items()
        },
        dataset=data,
        sampler=SequentialSampler(data),
        batch_size=len(LABELS),
        iterations_per_epoch=ITERATIONS,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        **kwargs,
    )
    trainer.train(num_epochs=EPOCHS)
    return trainer, loss
