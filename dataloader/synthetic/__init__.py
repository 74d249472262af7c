"""The embedded default: writes data sets of made-up hands in HO3D's own folder layout.

`python -m dataloader.synthetic --out DIR`. One module, one job:

    rig.py           the hand model as an animator needs it: anatomical axes, contact points, decoding
    pose.py          articulation: degrees of freedom, joint limits, gestures, smooth changes between them
    objects.py       things to hold: distance field, mesh, corners
    grasp.py         where the object sits in the hand, and how far each finger may close on it
    motion.py        one motion over time: articulation, wrist, object, in the world of a table
    cameras.py       the cameras around the table
    appearance.py    textures, skin, table and wall
    scene.py         one frame: surfaces, shading, segmentation
    depth_sensor.py  what a stereo depth sensor makes of a clean depth map
    frames.py        labels of a frame and its files, in HO3D's formats
    found.py         what stands at --out already
    writer.py        the whole tree: parameters, workers, record, reuse

Inside: metres, OpenCV camera, MANO16 joints. HO3D's OpenGL axes, joint order and encodings appear in
frames.py only. Everything random comes from streams named by motion, camera and frame, so a tree does not
depend on the workers.
"""
