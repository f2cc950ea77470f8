2setosa2
versicolor2	virginicaBoutput_label