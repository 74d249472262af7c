"""The embedded default: writes data sets of made-up hands in HO3D's own folder layout.

`python -m dataloader.synthetic --out DIR`. One room, one job:

    common.py  array types, directions and turns that the rooms below share
    hand/      the procedural hand in MANO's file format
    motion/    rig (anatomy, decoding) and pose (angles, gestures), objects, grasp -> motion over time
    scene/     cameras, appearance (textures, skin, room) -> stage: one frame; depth_sensor
    frames.py  annotations of a view and files of its frames, in HO3D's formats
    found.py   what stands at --out already
    writer.py  the whole tree: parameters, workers, record, reuse

Inside: metres, OpenCV camera, MANO16 joints. HO3D's OpenGL axes, joint order and encodings appear in
frames.py only. Everything random comes from streams named by motion, camera and frame, so a tree does not
depend on the workers.
"""
