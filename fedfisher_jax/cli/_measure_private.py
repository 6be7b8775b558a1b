"""What `fedfisher measure --unit example` promises, by what the rule sends, and which settings that has a use for."""

from ..merge import Rule
from ..merge._heads import MeasureMoments
from ..merge._measure import MeasureFisher
from ..privacy import dp_training, example_noise
from ..privacy._example_parts import require_parts
from ..privacy.example_noise import Promise
from ._measure_settings import MeasureSettings, changed

DIVIDED = ("budget", "compression")  # of no use where noise is divided among silos


def only_parameters(rule: Rule) -> bool:
    """Tell whether a rule sends a trained model and nothing beside it."""
    return isinstance(rule.measure, MeasureFisher) and rule.measure.structure is None


def promise_of(settings: MeasureSettings, rule: Rule, size: int) -> Promise | dp_training.Promise:
    """Find the noise that keeps (ε, δ) for each of so many examples.

    Raises:
        ValueError: a rule of which no promise can be made, or settings that it has no use for.
    """
    heads = isinstance(rule.measure, MeasureMoments)
    if not heads and not only_parameters(rule):
        require_parts(rule)
    if given := changed(settings, ("clip_params",)):
        what = "features" if heads else "gradients"
        raise ValueError(f"{given}: of examples the {what} are clipped, see clip_{what}")
    if rule.trains:
        return _of_training(settings, rule, size)
    _refuse(settings, ("share",), f"{rule.name} trains nothing, so all of the privacy is for what it sends")
    if heads:
        _refuse(settings, ("clip_gradients",), f"{rule.name} reads no gradients, expected fedavg")
        _refuse(settings, ("clip_fisher",), f"{rule.name} clips features, see clip_features")
    else:
        _refuse(settings, ("clip_features",), f"{rule.name} clips gradients and a Fisher, see clip_gradients")
        _refuse(settings, ("trust", "sharers"), "silos divide the noise of heads alone, expected local")
    if settings.trust == "distributed":
        _refuse(settings, DIVIDED, "with noise inside a secure sum files are exact, expected none")
    clips = {name: getattr(settings, name) for name in ("clip_features", "clip_gradients", "clip_fisher")}
    asked = {"releases": settings.rounds, "trust": settings.trust, "sharers": settings.sharers}
    return example_noise.promise(settings.epsilon or 0.0, settings.delta, **clips, **asked)


def _of_training(settings: MeasureSettings, rule: Rule, size: int) -> dp_training.Promise:
    """Promise about a model that is trained with privacy, and about what is sent beside it."""
    alone = only_parameters(rule)
    why = "adds its noise while it trains" if alone else "sends a model, too, which has its own noise"
    _refuse(settings, ("trust", "sharers"), f"{rule.name} {why}, expected local")
    _refuse(settings, ("checkpoint",), f"{rule.name} with privacy of examples trains, see clip_gradients")
    if rule.name != "pseudo-data":
        _refuse(settings, ("clip_features",), f"{rule.name} with privacy of examples trains, see clip_gradients")
    if alone:
        _refuse(settings, ("clip_fisher", "share"), f"{rule.name} sends parameters alone, see clip_gradients")
    return dp_training.promise(
        settings.epsilon or 0.0,
        settings.delta,
        size,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        clip_gradients=settings.clip_gradients,
        releases=settings.rounds,
        beside=None if alone else dp_training.Beside(settings.share, settings.clip_fisher, settings.clip_features),
    )


def _refuse(settings: MeasureSettings, names: tuple[str, ...], why: str) -> None:
    if given := changed(settings, names):
        raise ValueError(f"{given}: {why}")
