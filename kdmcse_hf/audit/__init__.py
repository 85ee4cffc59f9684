"""The audit: what the noisy-negative filter removes from the batches of training.

batches             the teacher's cosines, batch by batch as training draws them
filter, gallery     one threshold: its figures, and the pairs that show what it does
report              the whole audit
chart, page         the audit as a page
"""
