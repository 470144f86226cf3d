-- A shard without roots yields no sample: the draw or the limits of length left none.
SELECT documents, drawn, dropped FROM summary WHERE roots = 0
