"""The frozen teacher, from pictures and captions to the features that training reads.

text -> annotations, pictures -> captioned_pictures     what the teacher is asked about
encoder                                         the teacher itself
extraction_plan -> extraction                   asking it, in shards, on any number of processes
shard -> cache_writer -> cache                  what it said, on disk
feature_file, feature_import, json_import       what somebody else's teacher said
pairs                                           what training sees of a cache
tower_training -> towers                        a teacher of our own, made of image features and captions
"""
