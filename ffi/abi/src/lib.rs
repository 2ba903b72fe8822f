//! What two processes of gpulet see: layouts, rings, arena and regions.
