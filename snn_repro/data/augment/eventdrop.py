"""EventDrop (Gu et al., IJCAI 2021): random deletion of events."""

import numpy as np

from snn_repro.data.augment.augmentation import RecordingAugmentation, register_augmentation
from snn_repro.data.events import Events
from snn_repro.settings import Setting


@register_augmentation("eventdrop")
class EventDrop(RecordingAugmentation):
    """EventDrop (Gu et al., 2021): drop nothing, a time window, an area or random events.

    The four have equal probability. Area "rectangle" (tonic): the inside of a box of 0.05 to 0.25 of height and width,
    within the frame. "cross" (the authors' code): all rows and columns of the box, whose centre is anywhere; it is
    clipped to the frame. "eventrpg" (EventRPG's utils/augment.py, commit fa2d99c): the inside of such a box, of 0.05 to
    0.3 of the frame, its width multiplied and its height divided by 0.5 to 1.5; the time window may span the recording,
    and of the fractions of random events 0.9 is twice as likely. Without a remaining event nothing is changed.
    """

    settings = {
        "eventdrop": Setting(False, "events: EventDrop (Gu et al., 2021)"),
        "eventdrop_area": Setting(
            "rectangle", "EventDrop area: tonic's box, the box's rows and columns (authors' code), EventRPG's ranges",
            choices=("rectangle", "cross", "eventrpg"),
        ),
    }  # fmt: skip

    def __init__(self, eventdrop: bool = True, eventdrop_area: str = "rectangle"):
        self.area = eventdrop_area

    def apply(self, events: Events, size: tuple[int, int]) -> Events:
        from tonic import transforms  # heavy to import

        if not len(events.t):
            return events
        structured = np.empty(len(events.t), dtype=[("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
        for name in "xyp":
            structured[name] = getattr(events, name)
        structured["t"] = events.t - events.t.min()  # tonic's time window assumes a start at 0
        if self.area == "rectangle":
            kept = transforms.EventDrop(sensor_size=(*size[::-1], 2))(structured)
        else:
            kept = self._published(structured, size[::-1], self.area == "eventrpg")
        return Events(*(np.ascontiguousarray(kept[name]) for name in "txyp")) if len(kept) else events

    @staticmethod
    def _published(events: np.ndarray, size: tuple[int, int], rpg: bool) -> np.ndarray:
        from tonic import functional

        match np.random.randint(4):
            case 0:
                return events
            case 1:
                part = np.random.randint(1, 10 + rpg) / 10
                return functional.drop_by_time_numpy(events, part) if part < 1 else events[:0]
            case 2:
                part = np.random.randint(1, 6 + rpg) / 20
                stretch, outside = np.random.uniform(0.5, 1.5) if rpg else 1.0, []
                for name, n, side in zip("xy", size, (part * stretch, part / stretch), strict=True):
                    low = int(max(0, np.random.uniform(n) - n * side / 2))
                    outside.append((events[name] < low) | (events[name] > low + n * side))
                return events[outside[0] | outside[1] if rpg else outside[0] & outside[1]]
        return functional.drop_event_numpy(events, min(np.random.randint(1, 10 + rpg) / 10, 0.9))
