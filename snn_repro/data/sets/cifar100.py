"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32 pixels, the 100 fine labels, official split."""

from snn_repro.data.dataset import register
from snn_repro.data.images import ImageSet

FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


@register("cifar100")
class CIFAR100(ImageSet):
    shape, num_classes = (3, 32, 32), 100
    label_names = tuple(FINE.split())
    samples = 50_000, 10_000
    statistics = [129.304, 124.070, 112.434], [68.170, 65.392, 70.418]
    folders = ("cifar100", "cifar-100")
    files = (("cifar-100-python", "cifar-100-python.tar.gz"),)
    expected = "cifar-100-python.tar.gz, or the folder cifar-100-python that it unpacks to"
    published = "https://www.cs.toronto.edu/~kriz/cifar.html"

    def read(self, path):
        from snn_repro.data.formats import read_cifar100

        return read_cifar100(path)
