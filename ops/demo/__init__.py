"""`vestibule demo`: the main job with everything real, watched, broken on purpose and proved."""
