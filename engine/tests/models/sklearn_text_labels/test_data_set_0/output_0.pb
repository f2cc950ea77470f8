2setosa2
versicolor2	virginicaBlabel