import numpy as np

from pml_gca.datasets.glyphs.look_alikes import dilate, group_roots, stray_ink


def test_look_alike_parts() -> None:
    shapes = np.zeros((3, 8, 8), bool)
    shapes[0, 2:4, 2:4] = shapes[1, 3:5, 2:4] = shapes[2, 6:, 6:] = True
    assert dilate(shapes, 1)[0].sum() == 16
    stray = stray_ink(shapes, 1)
    assert np.allclose(stray, stray.T)
    assert stray[0, 1] == 0.0  # one pixel apart
    assert stray[0, 2] == 1.0
    alike = np.zeros((5, 5), bool)
    alike[0, 3] = alike[3, 4] = True
    assert group_roots(alike) == [0, 1, 2, 0, 0]
