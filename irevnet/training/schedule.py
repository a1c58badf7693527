"""Learning rates as functions of the step."""

from irevnet.training.config import TrainingConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainingConfig, peak: float, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step.

    ``"onecycle"`` is that of :class:`torch.optim.lr_scheduler.OneCycleLR` with linear annealing
    (Smith and Topin, 2017, https://arxiv.org/abs/1708.07120): it rises from a 25th of the peak to
    the peak and falls to a 10,000th of the initial value. It is a function of the step, so that
    nothing has to be restored when a run resumes in the middle of an epoch.

    Args:
        config: the recipe.
        peak: the largest learning rate; a recipe may have one for each optimizer.
        step: counted from 0 over all epochs.
        steps_per_epoch: optimizer steps in an epoch.
    """
    if config.schedule == "step":
        epoch = step // steps_per_epoch
        return peak * config.decay ** sum(epoch >= milestone for milestone in config.milestones)
    # One step more than is taken, so that the last step does not have the lowest rate.
    total = config.epochs * steps_per_epoch + 1
    # The rise takes at least one step.
    top = max(config.warmup, 2 / total) * total - 1
    first, last = peak / 25, peak / 25 / 1e4
    if step <= top:
        return (peak - first) * (step / top) + first
    return (last - peak) * ((step - top) / (total - 1 - top)) + peak
