// Three lemons on a brown table, and a halved one showing its segments.
//
// Made into lemon.jpg, in this folder, by
//   povray -D +WT1 +W448 +H448 +A0.1 +Ilemon.pov +Olemon.png
//   python -c "from PIL import Image; Image.open('lemon.png').convert('RGB').save('lemon.jpg', quality=88, optimize=True)"

#version 3.7;
global_settings { assumed_gamma 1.0 }
#default { finish { ambient 0 emission 0 } }
camera { location <0.1, 3.5, -6.2> look_at <0.07, 0.6, 0> angle 36 right x up y }
light_source { <-6, 10, -6> rgb <1.05, 1.0, 0.93>*0.95
  area_light x*3, z*3, 9, 9 adaptive 2 circular orient }
light_source { <7, 5, -5> rgb <0.9, 0.95, 1.0>*0.3 shadowless }
sky_sphere { pigment { rgb <0.9, 0.92, 0.95> } }

#declare Peel = texture {
  pigment { bozo scale 0.4
    color_map { [0 rgb <0.98, 0.72, 0.02>] [0.6 rgb <1.0, 0.78, 0.03>] [1 rgb <0.95, 0.80, 0.06>] } }
  normal { average normal_map {
    [1 bumps 0.5 scale 0.05]
    [1 dents 0.45 scale 0.1] } }
  finish { ambient 0.16 diffuse 0.75 specular 0.3 roughness 0.03 }
}
// a whole lemon, its long axis along y, widest radius 0.8
#declare Body = lathe { cubic_spline 11,
  <-0.12, 1.30>, <0, 1.27>, <0.13, 1.24>, <0.22, 1.10>, <0.52, 0.84>, <0.80, 0.10>, <0.66, -0.62>,
  <0.30, -1.00>, <0.17, -1.10>, <0, -1.14>, <-0.15, -1.12>
}
#declare Whole = object { Body texture { Peel } }

#declare Seg = 9;
#declare Fr = function(x, y) { sqrt(x*x + y*y) }
#declare Ft = function(x, y) { abs(mod(atan2(y, x)/(2*pi)*Seg + Seg + 0.5, 1) - 0.5) }
#declare Wall = function(x, y) { Ft(x, y)*2*pi/Seg*Fr(x, y) }
#declare Flesh = function(x, y, z) {
  min(1, max(0, min((Wall(x, y) - 0.014)/0.03,
             min((0.67 - 0.035*pow(1 - 2*Ft(x, y), 4) - Fr(x, y))/0.03,
                 (Fr(x, y) - 0.07)/0.04))))
}
#declare Pulp = pigment {
  crackle form <-1, 1, 0> scale 0.07
  color_map { [0 rgb <0.98, 0.86, 0.35>] [0.3 rgb <0.95, 0.78, 0.20>] [1 rgb <0.88, 0.68, 0.10>] }
}
#declare Cut = texture {
  pigment { function { Flesh(x, y, z) } pigment_map { [0 rgb <1.0, 0.90, 0.55>] [1 Pulp] } }
  normal { crackle 0.35 form <-1, 1, 0> scale 0.07 }
  finish { ambient 0.2 diffuse 0.72 specular 0.35 roughness 0.02 }
}
#declare Half = union {
  intersection {
    object { Body rotate x*90 texture { Peel } }
    plane { -z, 0 texture { Peel } }
  }
  cylinder { <0, 0, -0.004>, <0, 0, 0.01>, 0.765 texture { Cut } }
}
// table
plane { y, 0 texture { pigment { rgb <0.22, 0.11, 0.05> } finish { ambient 0.18 diffuse 0.65 } } }

object { Whole rotate z*78 rotate y*-25 translate <-0.85, 0.8, 0.45> }
object { Whole rotate z*-82 rotate y*30 translate <1.05, 0.8, 0.75> }
object { Whole rotate z*75 rotate y*10 translate <0.3, 0.8, 2.1> }
object { Half rotate x*18 rotate y*6 translate <0.2, 0.8, -1.1> }
