"""Altair charts made from rows of records: one specification is drawn in the page and saved as SVG or PNG.

Every chart takes `rows`, of the function of `report.rows` that it names; `title` is what stands above it, `palette` a
colour for each model's label.

Colours follow the palette of Okabe and Ito (its blue a little lighter, to show on dark ground), which colour-blind
readers can tell apart. Vermillion is kept for one meaning, collapsed attention, and grey for the reference.
Backgrounds are transparent and text colours are left to the page, which has a light and a dark side; a saved picture
has a white ground.
"""
