// An espresso with its crema, in a white cup on a saucer, on a dark wooden table.
//
// Made into espresso.jpg, in this folder, by
//   povray -D +WT1 +W448 +H448 +A0.1 +Iespresso.pov +Oespresso.png
//   python -c "from PIL import Image; Image.open('espresso.png').convert('RGB').save('espresso.jpg', quality=88, optimize=True)"

#version 3.7;
global_settings { assumed_gamma 1.0 }
#default { finish { ambient 0 emission 0 } }
camera { location <0.0, 4.6, -4.4> look_at <0.03, 0.4, 0> angle 34 right x up y }
light_source { <-6, 10, 4> rgb <1.05, 1.0, 0.92>*0.95
  area_light x*3, z*3, 9, 9 adaptive 2 circular orient }
light_source { <6, 6, -6> rgb <0.9, 0.95, 1.0>*0.3 shadowless }
sky_sphere { pigment { rgb <0.9, 0.92, 0.95> } }

#declare China = texture { pigment { rgb <0.95, 0.94, 0.92> }
  finish { ambient 0.16 diffuse 0.7 specular 0.5 roughness 0.01 reflection { 0.03 } } }

// cup: a turned wall with a foot
#declare Cup = union {
  lathe { cubic_spline 11,
    <0.30, 0.00>, <0.42, 0.02>, <0.46, 0.10>, <0.70, 0.35>, <0.90, 0.80>, <0.95, 1.10>, <0.92, 1.13>, <0.88, 1.10>,
    <0.83, 0.80>, <0.60, 0.35>, <0.0, 0.2> }
  torus { 0.28, 0.075 rotate x*90 scale <1.0, 1.15, 1> translate <1.11, 0.68, 0>
    clipped_by { plane { -x, -0.88 } } }
  texture { China }
}
#declare Saucer = lathe { cubic_spline 9,
  <-0.3, 0.06>, <0, 0.06>, <0.55, 0.06>, <1.1, 0.14>, <1.55, 0.27>, <1.58, 0.25>, <1.1, 0.06>, <0.6, 0>, <0, 0>
  texture { China } }

// crema: hazel, paler rings toward the wall, a few dark streaks
#declare Coffee = cylinder { <0, 0.94, 0>, <0, 0.95, 0>, 0.87
  texture {
    pigment { function { sqrt(x*x + z*z) } warp { turbulence 0.2 octaves 4 lambda 2.5 }
      color_map {
        [0.0 rgb <0.42, 0.17, 0.035>]
        [0.45 rgb <0.36, 0.13, 0.025>]
        [0.68 rgb <0.26, 0.085, 0.015>]
        [0.80 rgb <0.48, 0.22, 0.06>]
        [0.88 rgb <0.14, 0.04, 0.01>] } }
    normal { bumps 0.05 scale 0.05 }
    finish { ambient 0.14 diffuse 0.75 specular 0.3 roughness 0.02 } } }

#declare TableTop = plane { y, 0 texture {
  pigment { wood turbulence 0.06 scale <0.35, 0.35, 8> rotate x*2 rotate y*70
    color_map { [0 rgb <0.20, 0.095, 0.04>] [1 rgb <0.13, 0.055, 0.022>] } }
  finish { ambient 0.14 diffuse 0.65 specular 0.15 roughness 0.04 } } }

object { TableTop }
object { Saucer }
union { object { Cup } object { Coffee } rotate y*-28 translate y*0.07 }
