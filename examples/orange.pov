// Three oranges on a slate-grey table, and a halved one showing its segments.
//
// Made into orange.jpg, in this folder, by
//   povray -D +WT1 +W448 +H448 +A0.1 +Iorange.pov +Oorange.png
//   python -c "from PIL import Image; Image.open('orange.png').convert('RGB').save('orange.jpg', quality=88, optimize=True)"

#version 3.7;
global_settings { assumed_gamma 1.0 }
#default { finish { ambient 0 emission 0 } }

camera { location <0.1, 3.5, -6.2> look_at <0.05, 0.72, 0> angle 34 right x up y }

// soft key light, weak fill
light_source { <-6, 10, -6> rgb <1.05, 1.0, 0.93>*0.95
  area_light x*3, z*3, 9, 9 adaptive 2 circular orient }
light_source { <7, 5, -5> rgb <0.9, 0.95, 1.0>*0.3 shadowless }
sky_sphere { pigment { rgb <0.9, 0.92, 0.95> } }

#declare PeelFinish = finish { ambient 0.16 diffuse 0.75 specular 0.28 roughness 0.035 }

#declare PeelColour = pigment {
  bozo scale 0.35
  color_map { [0 rgb <1.0, 0.36, 0.015>] [0.6 rgb <1.0, 0.42, 0.02>] [1 rgb <1.0, 0.48, 0.03>] }
}
#declare Peel = texture {
  pigment { PeelColour }
  normal { average normal_map {
    [1 bumps 0.55 scale 0.045]
    [1 dents 0.5 scale 0.09] } }
  finish { PeelFinish }
}

// a whole fruit of radius 1 about the origin, its stem up
#declare Whole = union {
  sphere { 0, 1 scale <1, 0.95, 1> texture { Peel } }
  // stem star
  difference {
    sphere { <0, 0.93, 0>, 0.09 }
    sphere { <0, 1.03, 0>, 0.06 }
    texture { pigment { rgb <0.20, 0.27, 0.05> } normal { bumps 0.6 scale 0.03 } finish { ambient 0.15 diffuse 0.7 } }
  }
}

// a cut face: ten segments round a pale core, white pith, thin peel (in the x-y plane)
#declare Seg = 10;
#declare Fr = function(x, y) { sqrt(x*x + y*y) }
#declare Ft = function(x, y) { abs(mod(atan2(y, x)/(2*pi)*Seg + Seg + 0.5, 1) - 0.5) } // 0 mid wall .. 0.5
#declare Wall = function(x, y) { Ft(x, y)*2*pi/Seg*Fr(x, y) }                          // distance to a wall
// 1: flesh, 0: pith
#declare Flesh = function(x, y, z) {
  min(1, max(0, min((Wall(x, y) - 0.014)/0.03,
             min((0.865 - 0.035*pow(1 - 2*Ft(x, y), 4) - Fr(x, y))/0.03,
                 (Fr(x, y) - 0.10)/0.04))))
}
#declare Pulp = pigment {
  crackle form <-1, 1, 0> scale 0.07
  color_map { [0 rgb <1.0, 0.52, 0.06>] [0.3 rgb <1.0, 0.42, 0.02>] [1 rgb <0.96, 0.33, 0.01>] }
}
#declare Cut = texture {
  pigment {
    function { Flesh(x, y, z) }
    pigment_map { [0 rgb <1.0, 0.76, 0.40>] [1 Pulp] }
  }
  normal { crackle 0.35 form <-1, 1, 0> scale 0.07 }
  finish { ambient 0.2 diffuse 0.72 specular 0.35 roughness 0.02 }
}
#declare Half = union {
  intersection {
    sphere { 0, 1 texture { Peel } }
    plane { -z, 0 texture { Peel } }
  }
  cylinder { <0, 0, -0.004>, <0, 0, 0.01>, 0.955 texture { Cut } }
}

#declare Leaf = intersection {
  sphere { <0, -1.2, 0>, 1.30 }
  sphere { <0, -1.2, 0>, 1.285 inverse }
  cylinder { <0.42, -2, 0>, <0.42, 2, 0>, 0.66 }
  cylinder { <-0.42, -2, 0>, <-0.42, 2, 0>, 0.66 }
  texture {
    pigment { function { min(1, abs(x)/0.03) } color_map { [0 rgb <0.30, 0.45, 0.10>] [1 rgb <0.06, 0.22, 0.03>] } }
    finish { ambient 0.12 diffuse 0.7 specular 0.35 roughness 0.05 }
  }
}

// table
plane { y, 0
  texture {
    pigment { rgb <0.10, 0.13, 0.165> }
    finish { ambient 0.18 diffuse 0.65 }
  }
}

union {
  object { Whole }
  object { Leaf translate z*0.5 rotate x*-10 scale 0.8 rotate y*-35 translate <0, 0.96, 0> } // from the stem
  rotate <-25, 0, 18> translate <-1.0, 0.95, 0.55>
}
object { Whole rotate <-20, 40, -25> translate <1.05, 0.95, 0.75> }
object { Whole rotate <-30, 10, 5> translate <0.1, 0.95, 2.3> }
object { Half rotate x*18 rotate y*8 translate <0.15, 1.0, -1.0> }
